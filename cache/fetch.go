package cache

import (
	"context"
	"io"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/peer"
	"stoker.dev/ufs/guard"
)

// fly brings in what is missing of the flight's run: from older generations
// here, from workers that hold it, else through the shard's owner, else from
// older generations elsewhere, else from the UFS. A shard that the plan has here
// and elsewhere first comes through the one that is its source: else whoever had
// it before would have to send it to all. What cannot be had stands in
// f.failed by object.
func (s *Set) fly(ctx context.Context, n uint32, f *flight, w why) {
	f.phases.enter(forDisk)
	// Without space the run is read through memory; see deliver.
	err := s.place(n, f, w)
	f.memory = err != nil
	if err != nil && stoker.KindOf(err) != stoker.KindNoSpace {
		s.failAll(n, f, err)
		return
	}
	if f.memory && !s.narrow(ctx, n, f, w) {
		return
	}
	origins := s.origins(ctx, n, f)
	s.copyHere(ctx, n, f, origins)
	if !s.missing(n, f) {
		s.seal(n)
		return
	}
	if f.urgency.Priority() >= guard.Preload {
		ctx = peer.Ordered(ctx)
	}
	f.phases.enter(forPeer)
	o := s.ownersOf(ctx, n, w)
	if o.self && !w.ahead && !w.copies {
		s.askOwners(ctx, n, f, o, 1)
	}
	s.fromHolders(ctx, n, f)
	if w.ahead || w.copies {
		s.seal(n)
		return
	}
	bypass := false
	if s.missing(n, f) {
		gone := w.waits && s.begunBy(ctx, n, o)
		if w.waits && o.busy && f.urgency.Priority() >= guard.Preload || gone && s.waitsFor(n, f, true) {
			f.away.Store(true)
			return
		}
		s.askOwners(ctx, n, f, o, maxAsked)
		bypass = gone || !o.self && s.missing(n, f)
	}
	if lacks, silent := s.copyFromPeers(ctx, n, f, origins); lacks && w.waits && s.waitsFor(n, f, silent) {
		f.away.Store(true)
		return
	}
	ctx = guard.WithCount(guard.WithUrgency(guard.WithLoad(guard.WithFlow(ctx, s.id.Short()), s.load), f.urgency), &s.c.counters.UFS)
	ctx = guard.WithTurn(guard.WithCount(ctx, &s.use.reads.UFS), f.phases.turn)
	a := s.accountOf(n)
	if a != nil {
		ctx = guard.WithCount(ctx, &a.count)
	}
	if bypass {
		ctx = guard.WithCount(ctx, &s.c.counters.Bypass)
		if a != nil {
			ctx = guard.WithCount(ctx, &a.bypass)
		}
	}
	f.phases.enter(forUFS)
	s.fromUFS(ctx, n, f)
	s.seal(n)
}

// missing reports whether a block of the run is neither on disk nor in memory.
func (s *Set) missing(n uint32, f *flight) bool {
	for b := f.from; b < f.to; b++ {
		if !s.arrived(n, f, b) {
			return true
		}
	}
	return false
}

// arrived reports whether block b is on disk or in memory.
func (s *Set) arrived(n uint32, f *flight, b int) bool {
	if s.firstMissing(n, b, b+1) != b {
		return true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mem[b] != nil
}

// owners are the workers that may read a shard through for a flight.
type owners struct {
	ask  []Peer
	self bool     // the plan has the shard here, too: this worker asks the UFS after them
	lost []string // of a shard that the plan has here, too: before it in turn, and not live or silent
	busy bool     // likewise: one of them lives, and has not got that far yet
}

func (s *Set) ownersOf(ctx context.Context, n uint32, w why) *owners {
	if w.direct { // whoever asked it for that asks the others
		return &owners{self: true}
	}
	o := &owners{}
	o.ask, o.self, o.lost = s.c.o.Directory.Owners(ctx, s.plan.Load(), s.man.Shard(n).ID, n)
	return o
}

// askOwners asks the next owners, most at most, until one answers. What that one
// cannot have, another one would not have either. One whose store is slow may be
// silent for so long that it seems to be gone: it is asked for what it has.
func (s *Set) askOwners(ctx context.Context, n uint32, f *flight, o *owners, most int) {
	for ; most > 0 && len(o.ask) > 0 && !o.busy && s.missing(n, f); most-- {
		p := o.ask[0]
		o.ask = o.ask[1:]
		err := s.fromPeer(ctx, n, f, p, true)
		if err == nil || ctx.Err() != nil {
			return
		}
		if k := stoker.KindOf(err); !o.self || k != stoker.KindTransient && k != stoker.KindNotExist { // NotExist: another life of it answers
			continue
		}
		if o.busy = s.fromPeer(ctx, n, f, p, false) == nil; !o.busy {
			o.lost = append(o.lost, p.ID)
		}
	}
}

// begunBy reports whether one of the owners that do not answer may have some of a
// shard on its disk.
func (s *Set) begunBy(ctx context.Context, n uint32, o *owners) bool {
	return len(o.lost) > 0 && s.c.o.Directory.Begun(ctx, o.lost, s.id, n)
}

// fromHolders asks those who are said to have a shard.
func (s *Set) fromHolders(ctx context.Context, n uint32, f *flight) {
	if !s.missing(n, f) {
		return
	}
	for _, p := range s.c.o.Directory.Holders(ctx, s.id, n) {
		if _ = s.fromPeer(ctx, n, f, p, false); !s.missing(n, f) { // if it fails, another one may have it
			if p.Whole {
				s.slots[n].misses.Add(1)
			}
			return
		}
	}
}

// fromPeer asks one worker for what the run lacks. That it does not have all of
// it is no error.
func (s *Set) fromPeer(ctx context.Context, n uint32, f *flight, p Peer, through bool) error {
	var lacks []int
	for b := f.from; b < f.to; b++ {
		if !s.arrived(n, f, b) {
			lacks = append(lacks, b)
		}
	}
	for _, r := range runsOf(lacks) {
		if err := s.askPeer(ctx, n, f, p, r, through); err != nil {
			if !canceled(err) {
				s.log().Debug("peer did not serve", "peer", p.ID, "shard", n, "error", err)
			}
			return err
		}
	}
	return nil
}

// askPeer asks one worker for part of the run.
func (s *Set) askPeer(ctx context.Context, n uint32, f *flight, p Peer, r piece, through bool) error {
	return s.c.o.Fetcher.Fetch(ctx, p, s.id, n, r.from, r.to, through, func(block int, data []byte) error {
		if block < r.from || block >= r.to {
			return stoker.Errorf(stoker.KindCorrupt, "cache.peer", p.ID, "sent block %d, asked for %d to %d", block, r.from, r.to)
		}
		off, length := s.where(n, block)
		if len(data) != length {
			return stoker.Errorf(stoker.KindCorrupt, "cache.peer", p.ID, "block %d has %d bytes, want %d", block, len(data), length)
		}
		s.count(func(r *Reads) { r.PeerBytes.Add(int64(len(data))) })
		return s.deliver(n, f, block, off, data)
	})
}

// where returns offset and length of a block in the shard's file.
func (s *Set) where(n uint32, block int) (int64, int) {
	off, _, length := blockOf(s.memberAt(n, block), block)
	return off, length
}

// failAll notes err for every object of the run.
func (s *Set) failAll(n uint32, f *flight, err error) {
	for _, m := range s.membersIn(n, f.from, f.to) {
		f.fail(m.Row, err)
	}
}

// membersIn returns the members that have a block in [from, to).
func (s *Set) membersIn(n uint32, from, to int) []manifest.Member {
	sl := s.shard(n)
	defer sl.mu.RUnlock()
	var in []manifest.Member
	for _, m := range sl.members {
		if first := int(m.FirstBlock); first < to && first+manifest.BlocksOf(m.Bytes) > from {
			in = append(in, m)
		}
	}
	return in
}

// fromUFS reads what is still missing of the run, one request per gap of each
// object. An object that fails does not keep the others from coming in.
func (s *Set) fromUFS(ctx context.Context, n uint32, f *flight) {
	for _, m := range s.membersIn(n, f.from, f.to) {
		from := max(f.from, int(m.FirstBlock))
		end := min(f.to, int(m.FirstBlock)+manifest.BlocksOf(m.Bytes))
		for b := from; b < end; {
			if s.arrived(n, f, b) {
				b++
				continue
			}
			gap := b + 1
			for gap < end && !s.arrived(n, f, gap) {
				gap++
			}
			if err := s.readObject(ctx, n, f, m, b, gap); err != nil {
				f.fail(m.Row, err)
				break
			}
			b = gap
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// readObject reads blocks [from, to) of one object with one request.
func (s *Set) readObject(ctx context.Context, n uint32, f *flight, m manifest.Member, from, to int) error {
	src := s.man.Source(m.Row)
	fs, err := s.root(ctx, src.Root)
	if err != nil {
		return err
	}
	_, off, _ := blockOf(m, from)
	_, last, length := blockOf(m, to-1)
	body, err := fs.Open(ctx, src.Key, src.Version, off, last+int64(length)-off)
	if err != nil {
		return err
	}
	defer body.Close()
	b := blockPool.Get().(*[]byte)
	defer blockPool.Put(b)
	for block := from; block < to; block++ {
		off, _, length := blockOf(m, block)
		buf := (*b)[:length]
		if got, err := io.ReadFull(body, buf); err != nil {
			guard.Wasted(ctx, int64(got))
			if stoker.KindOf(err) != stoker.KindInternal || ctx.Err() != nil {
				return err
			}
			return stoker.Errorf(stoker.KindTransient, "cache.fill", src.Key, "body ended at block %d: %w", block, err)
		}
		if err := s.deliver(n, f, block, off, buf); err != nil {
			return err
		}
	}
	return nil
}
