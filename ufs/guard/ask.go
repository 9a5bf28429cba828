package guard

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"stoker.dev"
	"stoker.dev/ufs/budget"
)

// firstRead is how much a request that races another reads to have won.
const firstRead = 32 << 10

var firstPool = sync.Pool{New: func() any { return new([firstRead]byte) }}

// answer is a request under way whose answer has begun.
type answer struct {
	f      *FS
	t      *ticket
	who    claimant
	flow   string
	ctx    context.Context // of the request
	cancel context.CancelCauseFunc
	watch  *time.Timer // cancels with errHangs
	r      io.ReadCloser
	first  []byte           // was read ahead
	buf    *[firstRead]byte // where it is; nil when it has been handed out
	err    error            // came with it
}

// ask sends one request. The ticket is given back when the answer ends, or by
// ask if there is none.
func (b *body) ask(ctx context.Context, cancel context.CancelCauseFunc, t *ticket, off, length int64) (*answer, error) {
	f := b.f
	began := time.Now()
	watch := time.AfterFunc(f.o.HeaderWait, func() { cancel(errHangs) })
	f.count(b.ctx, func(c *Count) { c.Requests.Add(1) })
	r, err := f.fs.Open(ctx, b.key, b.want, off, length)
	if err == nil {
		f.health.answered(time.Since(began))
		f.at.limit.good()
		f.count(b.ctx, func(c *Count) { c.waiting.Store(0) })
		return &answer{f: f, t: t, who: b.who(), flow: b.flow, ctx: ctx, cancel: cancel, watch: watch, r: r}, nil
	}
	watch.Stop()
	if context.Cause(ctx) == errHangs {
		err = f.hangs("ufs.open", b.key)
	}
	if isThrottled(err) {
		f.count(b.ctx, func(c *Count) { c.Throttled.Add(1) })
	}
	if isThrottled(err) || errors.Is(err, errHangs) {
		f.at.limit.cut(t)
	}
	cancel(nil)
	f.at.limit.give()
	return nil, err
}

// begin reads the first bytes.
func (a *answer) begin(length int64) error {
	a.buf = firstPool.Get().(*[firstRead]byte)
	buf, n := a.buf[:min(length, firstRead)], 0
	for n == 0 && a.err == nil {
		n, a.err = a.r.Read(buf)
	}
	a.watch.Stop()
	if a.first = buf[:n]; n == 0 {
		return a.err
	}
	a.f.at.budget.Pay(budget.Bytes, a.who, a.flow, int64(n)) // nobody knew that they would come
	return nil
}

// read is one Read that ends with errHangs if nothing comes for so long.
func (a *answer) read(p []byte, stall time.Duration) (int, error) {
	if len(a.first) > 0 {
		n := copy(p, a.first)
		if a.first = a.first[n:]; len(a.first) == 0 {
			a.forget()
		}
		return n, nil
	}
	if a.err != nil {
		return 0, a.err
	}
	a.watch.Reset(stall)
	n, err := a.r.Read(p)
	a.watch.Stop()
	if err != nil && context.Cause(a.ctx) == errHangs {
		a.f.at.limit.cut(a.t)
		err = errStalls
	}
	return n, err
}

// forget gives the bytes that were read ahead back.
func (a *answer) forget() {
	if a.buf != nil {
		firstPool.Put(a.buf)
		a.first, a.buf = nil, nil
	}
}

// end gives everything back. What was read ahead and not used is lost.
func (a *answer) end() {
	a.forget()
	a.watch.Stop()
	_ = a.r.Close()
	a.cancel(nil)
	a.f.at.limit.give()
}

// hedgeAfter is when a second request is sent beside one that has not begun to
// be answered; 0: never, not enough is known.
func (b *body) hedgeAfter() time.Duration {
	slow := b.f.health.slow()
	if !b.u.demand() || slow == 0 {
		return 0
	}
	return max(slow, b.f.o.HedgeAfter)
}

// stall is how long a Read waits for a byte. A reader who waits is moved to
// another connection after some times what an answer takes to begin here,
// longer with each try.
func (b *body) stall() time.Duration {
	if !b.u.demand() {
		return b.f.o.Stall
	}
	bound := 10 * time.Second
	if slow := b.f.health.slow(); slow > 0 {
		bound = max(8*slow, time.Second)
	}
	return min(b.f.o.Stall, bound<<min(b.t.all, 10))
}

// request asks for what is left, twice if a reader waits and the first answer
// is late. The ticket is used up.
func (b *body) request(t *ticket) (*answer, error) {
	after := b.hedgeAfter()
	if after == 0 {
		ctx, cancel := context.WithCancelCause(b.ctx)
		return b.ask(ctx, cancel, t, b.off, b.left)
	}
	r := &race{b: b, results: make(chan result, 2)}
	r.send(t)
	return r.run(after)
}

// race is up to two requests for the same bytes; the first to bring some wins.
type race struct {
	b       *body
	results chan result
	decided atomic.Bool // by a winner, or by run when it wants none
	cancels []context.CancelCauseFunc
}

type result struct {
	a   *answer
	err error
	n   int // number of the request
}

// send starts a request. It ends when its answer has begun, or with the race;
// body.Close waits for it.
func (r *race) send(t *ticket) {
	b := r.b
	ctx, cancel := context.WithCancelCause(b.ctx)
	n, off, left := len(r.cancels), b.off, b.left // a winner goes on with b
	r.cancels = append(r.cancels, cancel)
	b.losers.Add(1)
	go func() {
		defer b.losers.Done()
		a, err := b.ask(ctx, cancel, t, off, left)
		if err == nil {
			if err = a.begin(left); err != nil {
				if context.Cause(ctx) == errHangs {
					err = stoker.Errorf(stoker.KindTransient, "ufs.read", b.key, "%w", errStalls)
				}
				a.end()
			}
		}
		if err != nil {
			r.results <- result{nil, err, n}
			return
		}
		if r.decided.CompareAndSwap(false, true) {
			r.results <- result{a, nil, n}
			return
		}
		read := int64(len(a.first))
		b.f.count(b.ctx, func(c *Count) { c.Bytes.Add(read); c.HedgedBytes.Add(read) })
		a.end()
	}()
}

// run waits for the winner. Losers are cancelled.
func (r *race) run(after time.Duration) (*answer, error) {
	b := r.b
	timer := time.NewTimer(after)
	defer timer.Stop()
	for running := 1; ; {
		select {
		case got := <-r.results:
			running--
			if got.err == nil {
				r.stop(got.n)
				return got.a, nil
			}
			if running > 0 && stoker.KindOf(got.err) == stoker.KindTransient {
				continue // the other one may do better
			}
			return r.lose(got.err)
		case <-timer.C:
			if !b.f.health.mayHedge() {
				continue
			}
			if !b.f.at.budget.Try(budget.Requests, b.who(), b.flow, 1) {
				continue
			}
			if t := b.f.at.limit.spare(b.u); t != nil {
				b.f.count(b.ctx, func(c *Count) { c.Hedges.Add(1) })
				r.send(t)
				running++
			} else {
				b.f.at.budget.Pay(budget.Requests, b.who(), b.flow, -1)
			}
		case <-b.ctx.Done():
			return r.lose(b.ctx.Err())
		}
	}
}

// lose ends a race with err, unless a request has just won.
func (r *race) lose(err error) (*answer, error) {
	if r.decided.CompareAndSwap(false, true) {
		r.stop(-1)
		return nil, err
	}
	for got := range r.results {
		if got.err == nil {
			r.stop(got.n)
			return got.a, nil
		}
	}
	return nil, err
}

// stop cancels all requests but one.
func (r *race) stop(but int) {
	for n, cancel := range r.cancels {
		if n != but {
			cancel(nil)
		}
	}
}
