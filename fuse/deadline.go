package fuse

import (
	"context"
	"sync"
	"time"
)

// DefaultDeadline is how long a READ may take: longer than a fill waits for a
// store that is away. Readers in the kernel cannot be interrupted before.
const DefaultDeadline = 2 * time.Minute

var _ context.Context = (*Deadline)(nil)

// Deadline is the context of one READ. Its time runs from when somebody first
// waits on it: a warm read waits for nothing, and costs no timer and no
// allocation. It must not be kept beyond Release, but contexts made from it may
// be: they have ended then.
type Deadline struct {
	after time.Duration
	until context.Context // nil = for ever

	mu    sync.Mutex
	done  chan struct{} // +checklocks:mu — nil: nobody has waited yet
	timer *time.Timer   // +checklocks:mu
	alone func() bool   // +checklocks:mu — ends what until does to it
	err   error         // +checklocks:mu
}

var deadlines = sync.Pool{New: func() any { return new(Deadline) }}

// NewDeadline makes a context that ends after that time of waiting, or, while
// somebody waits, with until, which may be nil.
func NewDeadline(after time.Duration, until context.Context) *Deadline {
	d := deadlines.Get().(*Deadline)
	d.after, d.until = after, until
	return d
}

// Release ends it.
func (d *Deadline) Release() {
	d.mu.Lock()
	used := d.done != nil
	d.endLocked(context.Canceled)
	d.mu.Unlock()
	if !used {
		deadlines.Put(d)
	}
}

// Done implements context.Context.
func (d *Deadline) Done() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.done == nil {
		d.done = make(chan struct{})
		d.timer = time.AfterFunc(d.after, func() { d.end(context.DeadlineExceeded) })
		d.alone = func() bool { return true }
		if d.until != nil {
			d.alone = context.AfterFunc(d.until, func() { d.end(context.Canceled) })
		}
	}
	return d.done
}

func (d *Deadline) end(why error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.endLocked(why)
}

func (d *Deadline) endLocked(why error) {
	if d.done == nil || d.err != nil {
		return
	}
	d.err = why
	d.timer.Stop()
	d.alone()
	close(d.done)
}

// Err implements context.Context.
func (d *Deadline) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// Deadline implements context.Context: it is not known before somebody waits.
func (d *Deadline) Deadline() (time.Time, bool) { return time.Time{}, false }

// Value implements context.Context.
func (d *Deadline) Value(any) any { return nil }
