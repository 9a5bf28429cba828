package fuse

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A read's time runs from when it first waits; what was made from its context
// ends with it at the latest.
func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := NewDeadline(time.Minute, nil)
		<-time.After(time.Hour) // nobody waits
		if d.Err() != nil {
			t.Errorf("ended before anybody waited: %v", d.Err())
		}
		began := time.Now()
		child, cancel := context.WithTimeout(d, time.Hour)
		defer cancel()
		<-child.Done()
		if took := time.Since(began); took != time.Minute || !errors.Is(child.Err(), context.DeadlineExceeded) || !errors.Is(d.Err(), context.DeadlineExceeded) {
			t.Errorf("ended after %v: %v, %v", took, child.Err(), d.Err())
		}
		d.Release()
		d = NewDeadline(time.Minute, nil)
		child, cancel = context.WithCancel(d)
		defer cancel()
		d.Release() // it was answered in time
		<-child.Done()
		if !errors.Is(child.Err(), context.Canceled) {
			t.Errorf("after the answer: %v", child.Err())
		}
		until, end := context.WithCancel(t.Context())
		defer end()
		for range 2 { // before it, and after
			d = NewDeadline(time.Minute, until)
			waits := d.Done()
			end()
			<-waits
			if took := time.Since(began); took >= 2*time.Minute || !errors.Is(d.Err(), context.Canceled) {
				t.Errorf("ended after %v: %v", took, d.Err())
			}
			d.Release()
		}
	})
}

// A warm read pays nothing for its deadline.
func TestDeadlineThatNobodyWaitsFor(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector drops what is pooled")
	}
	read := func(ctx context.Context) error { return ctx.Err() }
	if n := testing.AllocsPerRun(1000, func() {
		d := NewDeadline(time.Minute, nil)
		defer d.Release()
		if read(d) != nil {
			t.Error("ended")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
