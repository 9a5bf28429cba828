package guard

import (
	"bytes"
	"context"
	"errors"
	"hash"
	"io"
	"slices"
	"sync"
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
)

// mostHeld is the largest object that is held back until it is checked.
const mostHeld = 8 << 20

var heldPool = sync.Pool{New: func() any { return new([]byte) }}

// body is a read in progress. It is used by one goroutine at a time.
type body struct {
	f      *FS
	ctx    context.Context // of the Open: a reader lives in it
	u      *Urgency        // may be nil
	load   *Load           // likewise
	flow   string          // dataset, for the budget
	credit int64           // bytes taken from the budget and not yet read
	paced  int64           // likewise, from the load's limit
	key    string
	want   ufs.Version
	start  int64
	off    int64 // next byte
	left   int64
	t      tries
	a      *answer // nil while there is none
	err    error
	closed bool
	losers sync.WaitGroup // requests that lost a race

	sum      hash.Hash // of the bytes so far; nil if the store has none to compare
	sumWant  []byte
	wrong    int     // times that the sum was another
	held     []byte  // bytes found right and not yet handed out
	heldBuf  *[]byte // where they are
	heldSize int64   // taken from f.held
}

// open asks for what is left, trying as often as the options say.
func (b *body) open() error {
	for {
		t, err := b.mayBegin()
		if err != nil {
			return err
		}
		b.t.last = time.Now()
		if b.t.all == 0 {
			b.f.health.request()
		} else {
			b.f.count(b.ctx, func(c *Count) { c.Retries.Add(1) })
		}
		a, err := b.request(t)
		if err == nil {
			a.watch.Stop() // Read starts it again: a caller that takes its time breaks nothing off
			b.a = a
			b.expect(a.r)
			return nil
		}
		if stoker.KindOf(err) == stoker.KindInternal && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
			err = stoker.Errorf(stoker.KindTransient, "ufs.read", b.key, "body broke off with %d bytes left: %w", b.left, err)
		}
		if err := b.f.again(b.ctx, &b.t, err); err != nil {
			return err
		}
	}
}

// mayBegin waits until the limits let the next request run.
func (b *body) mayBegin() (*ticket, error) {
	defer turn(b.ctx)()
	if err := b.pace(); err != nil {
		return nil, err
	}
	if err := b.f.mayAsk(b.ctx, b.who(), b.flow); err != nil {
		return nil, err
	}
	return b.f.at.limit.take(b.ctx, b.u, b.load)
}

// expect takes over the checksum of a whole object, if the store sent one.
func (b *body) expect(r io.Reader) {
	if b.off != b.start {
		return // a sum goes on over a resumed body
	}
	b.sum, b.sumWant = nil, nil
	if s, ok := r.(ufs.Summed); ok {
		b.sum, b.sumWant = s.Sum()
	}
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if len(b.held) > 0 && !b.closed {
		n := copy(p, b.held)
		b.held = b.held[n:]
		return n, nil
	}
	switch {
	case b.err != nil:
		return 0, b.err
	case b.left == 0:
		return 0, io.EOF
	case len(p) == 0:
		return 0, nil
	case b.sum != nil && b.off == b.start && b.left <= mostHeld:
		return b.readWhole(p)
	}
	n, err := b.pull(p)
	b.err = err
	return n, err
}

// pull reads on, over as many requests as it takes.
func (b *body) pull(p []byte) (int, error) {
	for {
		may := min(int64(len(p)), b.left)
		paid := len(b.a.first) > 0
		if !paid {
			var err error
			if may, err = b.earn(may); err != nil {
				return 0, err
			}
		}
		n, err := b.a.read(p[:may], b.stall())
		if !paid {
			b.credit -= int64(n)
		}
		b.paced = max(0, b.paced-int64(n))
		b.off, b.left = b.off+int64(n), b.left-int64(n)
		b.f.count(b.ctx, func(c *Count) { c.Bytes.Add(int64(n)) })
		if b.sum != nil {
			b.sum.Write(p[:n]) //nolint:errcheck // a hash takes all
			if b.left == 0 && !bytes.Equal(b.sum.Sum(nil), b.sumWant) {
				return 0, stoker.Errorf(stoker.KindCorrupt, "ufs.read", b.key, "the bytes that came do not match the store's own checksum: compare the object with its source")
			}
		}
		if n > 0 {
			return n, nil
		}
		if err == nil {
			continue
		}
		if err := b.resume(err); err != nil {
			return 0, err
		}
	}
}

// readWhole reads an object to its end and hands its first bytes out once they
// were found right. One that is wrong is asked for once more.
func (b *body) readWhole(p []byte) (int, error) {
	length := b.left
	buf := p
	if int64(len(p)) < length {
		if err := b.f.held.Acquire(b.ctx, length); err != nil {
			b.err = err
			return 0, err
		}
		b.heldSize, b.heldBuf = length, heldPool.Get().(*[]byte)
		*b.heldBuf = slices.Grow((*b.heldBuf)[:0], int(length))
		buf = *b.heldBuf
	}
	for {
		err := b.fill(buf[:length:length])
		if err == nil {
			break
		}
		useless := b.off - b.start
		b.f.count(b.ctx, func(c *Count) { c.RetriedBytes.Add(useless) })
		b.drop()
		if b.wrong++; stoker.KindOf(err) == stoker.KindCorrupt && b.wrong == 1 {
			b.off, b.left = b.start, length
			b.t.all++
			if err = b.open(); err == nil {
				continue
			}
		}
		b.err = err
		return 0, err
	}
	b.drop() // whoever takes its time with the bytes keeps nothing from others
	if int64(len(p)) >= length {
		return int(length), nil
	}
	n := copy(p, buf[:length])
	b.held = buf[n:length]
	return n, nil
}

func (b *body) fill(buf []byte) error {
	for len(buf) > 0 {
		n, err := b.pull(buf)
		if err != nil {
			return err
		}
		buf = buf[n:]
	}
	return nil
}

// resume opens the rest of a body that broke off.
func (b *body) resume(err error) error {
	b.drop()
	stalled := errors.Is(err, errStalls)
	if errors.Is(err, io.EOF) || stoker.KindOf(err) == stoker.KindInternal {
		err = stoker.Errorf(stoker.KindTransient, "ufs.read", b.key, "body broke off with %d bytes left: %w", b.left, err)
	}
	if stalled && b.u.demand() && b.t.spent+1 < b.f.o.Attempts && b.ctx.Err() == nil {
		b.t.spent++ // a reader has waited long enough
		b.t.all++
	} else if err := b.f.again(b.ctx, &b.t, err); err != nil {
		return err
	}
	return b.open()
}

func (b *body) drop() {
	b.repay()
	if b.a != nil {
		b.a.end()
		b.a = nil
	}
}

// Close implements io.Closer. It waits for requests that lost a race to see
// that they were cancelled.
func (b *body) Close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	if (b.left > 0 || len(b.held) > 0) && b.err == nil {
		b.err = stoker.Errorf(stoker.KindInvalid, "ufs.read", b.key, "closed")
	}
	b.drop()
	b.losers.Wait()
	if b.held = nil; b.heldSize > 0 {
		heldPool.Put(b.heldBuf)
		b.f.held.Release(b.heldSize)
		b.heldSize, b.heldBuf = 0, nil
	}
	return nil
}
