package api

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"stoker.dev"
)

// Probes run at once, each with its own limit; one that hangs in a system call
// fails with its hint and holds up none of the others.
func TestDiagnose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		hang := make(chan struct{})
		slow := func(ctx context.Context) Check { <-time.After(2 * time.Second); return Ok("slow") }
		got := Diagnose(t.Context(), 3*time.Second, []Probe{
			{Name: "slow", Run: slow}, {Name: "slow too", Run: slow},
			{Name: "hangs", Hint: "see dmesg", Run: func(context.Context) Check { <-hang; return Ok("never") }},
			{Name: "obeys", Run: func(ctx context.Context) Check { <-ctx.Done(); return Fail("start it", "no answer from it") }},
		})
		if took := time.Since(began); took > 4*time.Second {
			t.Errorf("one after the other: %v", took)
		}
		close(hang)
		want := []Check{{"slow", CheckOK, "slow", ""}, {"slow too", CheckOK, "slow", ""},
			{"hangs", CheckFail, "no answer within 3s", "see dmesg"}, {"obeys", CheckFail, "no answer from it", "start it"}}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("%+v, want %+v", got[i], want[i])
			}
		}
		synctest.Wait()
	})
}

// objects is a store that fails where it is told to.
type objects struct {
	put, get, del error
	body          []byte
	left          int
}

func (o *objects) Get(context.Context, string) ([]byte, string, error) { return o.body, "", o.get }
func (o *objects) PutIfAbsent(_ context.Context, _ string, b []byte) (string, error) {
	if o.put == nil {
		o.left++
	}
	if o.body == nil {
		o.body = b
	}
	return "", o.put
}
func (o *objects) ReplaceIf(context.Context, string, []byte, string) (string, error) { return "", nil }
func (o *objects) List(context.Context, string) ([]string, error)                    { return nil, nil }
func (o *objects) Delete(context.Context, string) error {
	if o.del == nil {
		o.left--
	}
	return o.del
}

func TestStoreProbe(t *testing.T) {
	broken := errors.New("disk on fire")
	for name, c := range map[string]struct {
		o           objects
		state, part string
	}{
		"well":        {objects{}, CheckOK, "written, read and deleted"},
		"no writes":   {objects{put: broken}, CheckFail, "cannot be written: disk on fire"},
		"no reads":    {objects{get: broken}, CheckFail, "cannot be read"},
		"other bytes": {objects{body: []byte("x")}, CheckFail, "reads differently"},
		"no deletes":  {objects{del: broken}, CheckWarn, "cannot be deleted"},
	} {
		got := StoreProbe(&c.o).Run(t.Context())
		if got.State != c.state || !strings.Contains(got.Detail, c.part) || (got.Hint == "") != (c.state == CheckOK) {
			t.Errorf("%s: %+v", name, got)
		}
		if name == "well" && c.o.left != 0 {
			t.Errorf("%d objects left behind", c.o.left)
		}
	}
}

func TestClockCheck(t *testing.T) {
	for _, c := range []struct {
		ahead, within time.Duration
		state, part   string
	}{
		{0, time.Millisecond, CheckOK, "within 1.0 ms"}, {time.Second, 0, CheckOK, "within 1000.0 ms"}, {3 * time.Second, 0, CheckWarn, "3s ahead"}, {-3 * time.Second, 0, CheckWarn, "3s behind"},
		{3 * time.Second, 2 * time.Second, CheckOK, "within 5s"}, // what is not known is not held against it
		{-time.Hour, time.Second, CheckFail, "1h0m0s behind"},
	} {
		if got := ClockCheck("x", c.ahead, c.within); got.State != c.state || !strings.Contains(got.Detail, c.part) {
			t.Errorf("%v ± %v: %+v", c.ahead, c.within, got)
		}
	}
}

func TestWorseOf(t *testing.T) {
	for _, c := range [][3]string{{CheckOK, CheckWarn, CheckWarn}, {CheckFail, CheckWarn, CheckFail}, {CheckOK, CheckOK, CheckOK}, {CheckWarn, CheckFail, CheckFail}} {
		if got := WorseOf(c[0], c[1]); got != c[2] {
			t.Errorf("WorseOf(%s, %s) = %s", c[0], c[1], got)
		}
	}
}

func TestDoctorClients(t *testing.T) {
	c, err := NewController(ClientOptions{URL: "unix:///nowhere/c.sock", Hint: "start it"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Doctor(t.Context()); stoker.KindOf(err) != stoker.KindTransient {
		t.Errorf("%v", err)
	}
}
