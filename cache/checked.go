package cache

import (
	"context"
	"fmt"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// Local says why the kernel should not read all of a dataset past this worker;
// "" = every shard is whole and sealed on its disks, and every byte was written,
// or read and found right, in this life of the worker. Of bytes that were not, up
// to most are read now.
func (s *Set) Local(ctx context.Context, most int64) (why string, err error) {
	missing, unread := 0, int64(0)
	for n := range uint32(len(s.slots)) {
		here, bytes := s.unread(n)
		if !here {
			missing++
		}
		unread += bytes
	}
	switch {
	case missing > 0:
		return fmt.Sprintf("%d of %d shards are not on this worker's disks", missing, len(s.slots)), nil
	case unread > most:
		return fmt.Sprintf("%s of it were not read since the worker started ('stoker verify --deep' does that)", api.HumanBytes(unread)), nil
	case unread == 0:
		return "", nil
	}
	for n := range uint32(len(s.slots)) {
		if why, err := s.readUnread(ctx, n); why != "" || err != nil {
			return why, err
		}
	}
	return "", nil
}

// unread is how much of a shard nobody has read in this life; here: it is whole and sealed.
func (s *Set) unread(n uint32) (here bool, bytes int64) {
	sl := s.shard(n)
	defer sl.mu.RUnlock()
	if sl.sh == nil || !sl.sh.Sealed() || sl.sh.Retired() {
		return false, 0
	}
	for block := range int(s.man.Shard(n).Blocks) {
		if !sl.sh.Checked(block) {
			_, _, length := blockOf(memberOf(sl.members, block), block)
			bytes += int64(length)
		}
	}
	return true, bytes
}

// readUnread reads what nobody has read of a shard. What is wrong is retired, as
// in a scrub.
func (s *Set) readUnread(ctx context.Context, n uint32) (why string, err error) {
	b := blockPool.Get().(*[]byte)
	defer blockPool.Put(b)
	for block := range int(s.man.Shard(n).Blocks) {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if s.wasChecked(n, block) {
			continue
		}
		off, length := s.where(n, block)
		err := s.readFromDisk(n, block, off, (*b)[:length])
		switch stoker.KindOf(err) {
		case stoker.KindCorrupt:
			s.wrong(n, block, err)
			s.refill(n)
			return fmt.Sprintf("wrong bytes were found in shard %d and are brought in again", n), nil
		case stoker.KindNotExist:
			return fmt.Sprintf("shard %d went from this worker's disks", n), nil
		}
		if err != nil {
			return "", err
		}
	}
	return "", nil
}

func (s *Set) wasChecked(n uint32, block int) bool {
	sl := s.shard(n)
	defer sl.mu.RUnlock()
	return sl.sh != nil && sl.sh.Checked(block)
}
