package api

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
)

// States of a check.
const (
	CheckOK   = "ok"
	CheckWarn = "warn" // it works, but not as it should
	CheckFail = "fail" // something that users need does not work
)

// Check is one thing that a doctor looked at.
type Check struct {
	Name   string `json:"name"`
	State  string `json:"state"`          // ok | warn | fail
	Detail string `json:"detail"`         // what was seen; never a secret
	Hint   string `json:"hint,omitempty"` // what to do, unless ok
}

// DoctorReport is GET /v1/doctor of both daemons: what a daemon finds out about
// itself and what it depends on.
type DoctorReport struct {
	Role   string    `json:"role"`         // controller | worker
	ID     string    `json:"id,omitempty"` // of a worker
	Time   time.Time `json:"time"`         // by the daemon's clock
	Checks []Check   `json:"checks"`
}

// Ok, Warn and Fail make checks without a name: Diagnose fills it in.
func Ok(format string, args ...any) Check {
	return Check{State: CheckOK, Detail: fmt.Sprintf(format, args...)}
}

// Warn is a check that found something to look after.
func Warn(hint, format string, args ...any) Check {
	return Check{State: CheckWarn, Hint: hint, Detail: fmt.Sprintf(format, args...)}
}

// Fail is a check that found something broken.
func Fail(hint, format string, args ...any) Check {
	return Check{State: CheckFail, Hint: hint, Detail: fmt.Sprintf(format, args...)}
}

// WorseOf returns the worse of two states.
func WorseOf(a, b string) string {
	rank := map[string]int{CheckOK: 0, CheckWarn: 1, CheckFail: 2}
	if rank[b] > rank[a] {
		return b
	}
	return a
}

// Probe is a check to be made.
type Probe struct {
	Name string
	Hint string // what to do if there is no answer in time
	Run  func(ctx context.Context) Check
}

// CheckTimeout is how long one probe may take.
const CheckTimeout = 3 * time.Second

// Diagnose runs all probes at once, each for at most within, and returns their
// checks in the same order. A probe that hangs, as a dead network file system
// makes it, fails; its goroutine is left to end when its system call does.
func Diagnose(ctx context.Context, within time.Duration, probes []Probe) []Check {
	out := make([]Check, len(probes))
	var all sync.WaitGroup
	for i, p := range probes {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, within)
			defer cancel()
			done := make(chan Check, 1) // the one answer, also when nobody waits any more
			go func() { done <- p.Run(ctx) }()
			select {
			case out[i] = <-done:
			case <-ctx.Done():
				select { // it may have seen the end of ctx by itself, and says more
				case out[i] = <-done:
				case <-time.After(within / 10):
					out[i] = Fail(p.Hint, "no answer within %v", within)
				}
			}
			out[i].Name = p.Name
		})
	}
	all.Wait()
	return out
}

// StoreProbe writes, reads and deletes an object of the manifest store.
func StoreProbe(objects ufs.Objects) Probe {
	const hint = "see that the folder or bucket of --store is there and that the daemon may write to it"
	return Probe{Name: "manifest-store", Hint: hint, Run: func(ctx context.Context) Check {
		name, began := "doctor/"+stoker.NewToken(), time.Now()
		body := []byte("written by 'stoker doctor'; may be deleted\n")
		if _, err := objects.PutIfAbsent(ctx, name, body); err != nil {
			return Fail(hint, "cannot be written: %v", err)
		}
		got, _, err := objects.Get(ctx, name)
		switch {
		case err != nil:
			return Fail(hint, "cannot be read: %v", err)
		case string(got) != string(body):
			return Fail("take a store that gives back what was written", "what was written reads differently")
		}
		if err := objects.Delete(ctx, name); err != nil {
			return Warn(hint, "an object cannot be deleted: %v", err)
		}
		return Ok("written, read and deleted in %s", RoundTrip(time.Since(began)))
	}}
}

// RoundTrip prints a short time for a check's detail.
func RoundTrip(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }

// How far clocks may be apart. Leases are durations on one clock each, so
// nothing breaks at once; signed requests to a store break at 15 minutes.
const (
	skewWarn = 2 * time.Second
	skewFail = 5 * time.Minute
)

// ClockCheck judges how far a clock is from the one that compares. The round
// trip in which it was read is what is not known.
func ClockCheck(what string, ahead, within time.Duration) Check {
	const hint = "run chronyd or ntpd on both; stores refuse requests when a clock is 15 min off"
	off := max(0, ahead.Abs()-within)
	detail := fmt.Sprintf("%s: within %s", what, RoundTrip(ahead.Abs()+within))
	if ahead.Abs()+within > time.Second { // the checks took long: the answer came late
		detail = fmt.Sprintf("%s: within %v", what, (ahead.Abs() + within).Round(100*time.Millisecond))
	}
	if off > skewWarn {
		dir := "ahead"
		if ahead < 0 {
			dir = "behind"
		}
		detail = fmt.Sprintf("%s is %v %s", what, ahead.Abs().Round(100*time.Millisecond), dir)
	}
	switch {
	case off > skewFail:
		return Fail(hint, "%s", detail)
	case off > skewWarn:
		return Warn(hint, "%s", detail)
	}
	return Ok("%s", detail)
}

// doctorTimeout leaves a daemon's probes the time to say that they had none.
const doctorTimeout = 3 * CheckTimeout

// Doctor asks the controller how it is.
func (c *Controller) Doctor(ctx context.Context) (DoctorReport, error) {
	return get[DoctorReport](ctx, c.c, doctorTimeout, http.MethodGet, "/v1/doctor", nil)
}

// Doctor asks the worker of this node how it is.
func (n *Node) Doctor(ctx context.Context) (DoctorReport, error) {
	return get[DoctorReport](ctx, n.c, doctorTimeout, http.MethodGet, "/v1/doctor", nil)
}

// Doctor asks the worker how it is.
func (w *WorkerClient) Doctor(ctx context.Context) (DoctorReport, error) {
	return get[DoctorReport](ctx, w.c, doctorTimeout, http.MethodGet, "/v1/doctor", nil)
}

// probeTimeout leaves the controller the time to say what took too long.
const probeTimeout = 30 * time.Second

// DoctorUFS asks the controller how a store behaves.
func (c *Controller) DoctorUFS(ctx context.Context, l ufs.Location) (DoctorReport, error) {
	return get[DoctorReport](ctx, c.c, probeTimeout, http.MethodPost, "/v1/doctor/ufs", l)
}
