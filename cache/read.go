package cache

import (
	"context"
	"errors"
	"syscall"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/ufs/guard"
)

// footer is what comes with the last block of a large object that is asked for by itself:
// 1 MiB. Containers (Parquet, zip and npz, HDF5 at times) have their directory at
// the end, and its readers ask for the last bytes first.
const footer = 1 << 20 / stoker.BlockBytes

// ReadAt reads from the file of a row: len(p) bytes from off, fewer only at
// its end. Blocks that are not here are brought in first; what is read is
// checked against its checksum each time. A warm read does not allocate.
func (s *Set) ReadAt(ctx context.Context, row manifest.Row, p []byte, off int64) (int, error) {
	n, _, err := s.read(ctx, row, p, off)
	return n, err
}

// read is ReadAt. waited: for bytes that were not here.
func (s *Set) read(ctx context.Context, row manifest.Row, p []byte, off int64) (done int, waited bool, err error) {
	e := s.man.Entry(row)
	if e.Kind != manifest.File || off < 0 {
		return 0, false, stoker.Errorf(stoker.KindInvalid, "cache.read", s.man.Path(row), "not a file, or a negative offset")
	}
	if off >= e.Bytes {
		return 0, false, nil
	}
	s.count(func(r *Reads) { r.Reads.Add(1) })
	p = p[:min(int64(len(p)), e.Bytes-off)]
	for done < len(p) {
		n, missed, err := s.readBlock(ctx, row, e, p[done:], off+int64(done))
		if err != nil {
			return done, waited, err
		}
		done += n
		waited = waited || missed
	}
	if waited || s.steps.Acting() || s.tracker.Acting() {
		s.noteSteps(row, e, off, done, waited)
	}
	return done, waited, nil
}

// readBlock reads up to the end of the block that off lies in. waited: it was not
// here.
func (s *Set) readBlock(ctx context.Context, row manifest.Row, e manifest.Entry, p []byte, off int64) (read int, waited bool, err error) {
	n := s.man.ShardOf(row, off)
	if n == manifest.NoShard || int(n) >= len(s.slots) {
		return 0, false, stoker.Errorf(stoker.KindCorrupt, "cache.read", s.man.Path(row), "no shard holds offset %d", off)
	}
	inShard := off // offset in this shard's part of the object
	if e.Bytes >= stoker.ExtentBytes {
		inShard = off % stoker.ExtentBytes
	}
	rel := inShard / stoker.BlockBytes
	block := int(e.FirstBlock) + int(rel)
	start := rel * stoker.BlockBytes // of the block, in the object's part
	length := int(min(e.Bytes-(off-inShard)-start, stoker.BlockBytes))
	if e.Bytes >= stoker.ExtentBytes {
		length = int(min(int64(length), stoker.ExtentBytes-start))
	}
	skip := int(inShard - start)
	want := p[:min(len(p), length-skip)]
	s.noteRead(n, block)
	for attempt := 0; ; attempt++ {
		err := s.readLocal(n, block, e.Off+start, length, skip, want)
		if err == nil {
			s.gave(n, block, length, len(want), e.Bytes)
			if attempt == 0 && skip+len(want) == length && s.tracker.Acting() {
				s.note(n, s.memberAt(n, block), block, block+1, false)
			}
			return len(want), attempt > 0, nil
		}
		if stoker.KindOf(err) == stoker.KindCorrupt {
			s.wrong(n, block, err, "path", s.man.Path(row))
		} else if stoker.KindOf(err) != stoker.KindNotExist {
			return 0, true, err
		}
		if attempt == 2 {
			return 0, true, err
		}
		copied, passed, err := s.demand(ctx, n, block, manifest.BlocksOf(int64(skip+len(p))), skip, want)
		if err != nil {
			return 0, true, err
		}
		switch {
		case passed && copied > 0: // the disk has no space for it
			s.passed(n)
			s.readOn(n, block)
			return copied, true, nil
		case copied > 0: // on its way to the disk
			s.gave(n, block, length, copied, e.Bytes)
			return copied, true, nil
		}
	}
}

// gave notes that a read got so many bytes of a block of length bytes, of an object of
// size, that the disk has, or is about to have.
func (s *Set) gave(n uint32, block, length, bytes int, size int64) {
	s.countLocal(bytes)
	s.used(n, block, length)
	s.readOn(n, block)
	if bytes == length && size > demandWindow*stoker.BlockBytes {
		s.delivered(n, block)
	}
}

// readLocal reads part of one block from this worker's disk. NotExist means
// that the block is not here.
func (s *Set) readLocal(n uint32, block int, off int64, length, skip int, p []byte) error {
	sl := s.shard(n)
	defer sl.mu.RUnlock()
	if sl.sh == nil || !sl.sh.Has(block) {
		return errMissing
	}
	if skip == 0 && len(p) == length {
		return sl.sh.ReadBlock(block, off, p)
	}
	b := blockPool.Get().(*[]byte)
	defer blockPool.Put(b)
	buf := (*b)[:length]
	if err := sl.sh.ReadBlock(block, off, buf); err != nil {
		return err
	}
	copy(p, buf[skip:])
	return nil
}

// errMissing is kept, so that a miss does not allocate before its fill does.
var errMissing = &stoker.Error{Op: "cache.read", Kind: stoker.KindNotExist}

// demand brings in the block that a reader waits for, and what the reader
// will probably want with it. asked: how many blocks from this one on its READ takes;
// copied, passed: see fillOne.
func (s *Set) demand(ctx context.Context, n uint32, block, asked, skip int, p []byte) (copied int, passed bool, err error) {
	m := s.memberAt(n, block)
	from, to := int(m.FirstBlock), int(m.FirstBlock)+manifest.BlocksOf(m.Bytes)
	if to-from > demandWindow {
		end, begins := s.windowEnd(n, m, block, asked)
		s.note(n, m, block, end, true)
		if m.ObjectOff+m.Bytes == s.man.Entry(m.Row).Bytes && block == to-1 && s.c.o.ReadAheadBytes >= footer*stoker.BlockBytes {
			s.fillAhead(n, max(from, to-footer), to, func(r *Reads) { r.Footers.Add(1) }) // the one below joins it
		}
		copied, passed, err = s.fillOne(ctx, n, block, end, why{prio: guard.Demand}, skip, p)
		if begins && err == nil {
			s.heads.Began(uint32(m.Row), asked)
		}
		return copied, passed, err
	}
	s.note(n, m, from, to, true)
	copied, passed, err = s.fillOne(ctx, n, block, to, why{prio: guard.Demand}, skip, p)
	if !passed && err == nil {
		s.follow(n, block)
	}
	return copied, passed, err
}

// A shard that another worker holds whole is copied ahead of demand once
// followAfter of its objects were asked for: who reads some of a shard reads,
// in most trainings, all of it, and a transfer costs the same for 64 small
// objects as for one. The space was charged when the shard's file was made.
const (
	followAfter  = 4
	followBlocks = 64 // copied at a time: what lies around the block that was asked for
	followMost   = 4  // copies at a time
)

// follow copies what lies around a block from the peer that had it, unless
// enough is being copied already.
func (s *Set) follow(n uint32, block int) {
	if s.slots[n].misses.Load() < followAfter {
		return
	}
	from := block / followBlocks * followBlocks
	to := min(from+followBlocks, int(s.man.Shard(n).Blocks))
	c := s.c
	select {
	case c.following <- struct{}{}: // given back when the flight has ended
	default:
		return
	}
	c.fills.mu.Lock()
	defer c.fills.mu.Unlock()
	first, end, there := s.gapLocked(n, from, to)
	if first == to || there != nil || c.stop.Err() != nil {
		<-c.following
		return
	}
	s.startLocked(n, first, end, why{ahead: true, prio: guard.Prefetch})
}

// wrong takes a block that was read and does not match its checksum out of use, counts
// and names it.
func (s *Set) wrong(n uint32, block int, why error, named ...any) {
	s.c.counters.Corrupt.Add(1)
	s.log().Error("block does not match its checksum", append(named, "shard", n, "block", block, "error", why)...)
	s.retire(n, block, why)
}

// retire takes a block whose bytes went bad out of use. A sealed shard is
// never written again, so it goes as a whole and is filled anew, as does one
// that its disk cannot read.
func (s *Set) retire(n uint32, block int, why error) {
	sl := s.shard(n)
	whole := sl.sh != nil && (sl.sh.Sealed() || errors.Is(why, syscall.EIO))
	if sl.sh != nil && !whole {
		if err := sl.sh.Drop(block); err != nil {
			s.log().Error("cannot drop a bad block", "shard", n, "block", block, "error", err)
			whole = !sl.sh.Retired()
		}
	}
	sl.mu.RUnlock()
	if whole {
		s.discard(n, why)
	}
}

// discard gives the shard's file up and says so.
func (s *Set) discard(n uint32, why error) {
	s.lose(n)
	s.slots[n].lost.Store(true)
	shard := s.man.Shard(n).ID
	s.c.o.Store.Retire(shard, why)
	s.c.letGo(shard, []place{{s.id, n}})
	at, err := s.c.placesOf(s.c.stop, func(id stoker.ID) bool { return id == shard })
	if err != nil && !canceled(err) {
		s.log().Error("cannot tell what else has a bad shard", "shard", n, "error", err)
	}
	s.c.letGo(shard, at[shard])
}
