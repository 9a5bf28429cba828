package workflows

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

const window = 10 * time.Minute

// runLoad runs a load of parts 0 to parts of plan 1.
func (w *world) runLoad() Loaded {
	w.t.Helper()
	w.SetStartTime(start)
	w.ExecuteWorkflow(Load, LoadInput{Plan: id(1), From: 0, To: w.parts, Window: window})
	w.finished()
	var l Loaded
	if err := w.GetWorkflowResult(&l); err != nil {
		w.t.Fatal(err)
	}
	return l
}

// loses makes the worker of part 1 of a plan go away when it has 70 bytes.
func loses(plan stoker.ID) func(int, activities.PartInput) (activities.PartLoaded, error) {
	return func(_ int, in activities.PartInput) (activities.PartLoaded, error) {
		p := activities.PartLoaded{UFSBytes: 100, UFSRequests: 1}
		if in.Plan == plan && in.Part == 1 {
			p.UFSBytes, p.Lost, p.Had = 70, true, 70
		}
		return p, nil
	}
}

// What becomes of the part of a worker that went away.
func TestLostWorker(t *testing.T) {
	moved, kept, last := id(50), id(60), id(70)
	for name, c := range map[string]struct {
		first, second activities.Mended // without All, and with it
		back          bool
		loads         []activities.PartInput // besides the three of the plan
		reserves      []activities.ReserveInput
		kind          string // "" = it succeeds
		lost          int64
	}{
		"nothing was begun: all moves at once": {
			first:    activities.Mended{Moved: moved, Parts: []int{0, 2}},
			loads:    []activities.PartInput{{Plan: moved, Part: 0}, {Plan: moved, Part: 2}},
			reserves: []activities.ReserveInput{{Plan: moved}},
			lost:     70,
		},
		"it comes back for what it had begun": {
			first: activities.Mended{Moved: moved, Parts: []int{2}, Kept: kept}, back: true,
			loads:    []activities.PartInput{{Plan: moved, Part: 2}, {Plan: kept, Part: 1, Had: 70}},
			reserves: []activities.ReserveInput{{Plan: moved}, {Plan: kept, Replaces: id(1), Parts: []int{1}}},
		},
		"it comes back, and all waited": {
			first: activities.Mended{Kept: kept}, back: true,
			loads:    []activities.PartInput{{Plan: kept, Part: 1, Had: 70}},
			reserves: []activities.ReserveInput{{Plan: kept, Replaces: id(1), Parts: []int{1}}},
		},
		"it stays away: the rest moves then": {
			first: activities.Mended{Kept: kept}, second: activities.Mended{Moved: last, Parts: []int{0}},
			loads:    []activities.PartInput{{Plan: last, Part: 0}},
			reserves: []activities.ReserveInput{{Plan: last}},
			lost:     70,
		},
		"a node stays away: nobody takes over for it": {first: activities.Mended{Kept: kept, Node: "w1"}, kind: "transient"},
		"it stays away, and nobody has space": {
			first: activities.Mended{Kept: kept}, second: activities.Mended{Kept: id(61)},
			kind: "nospace", lost: 70,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.load = loses(id(1))
			w.mend = func(_ int, in activities.MendInput) (activities.Mended, error) {
				if in.Part != 1 || in.Plan != map[bool]stoker.ID{false: id(1), true: kept}[in.All] || in.Round == 0 {
					t.Errorf("mend %+v", in)
				}
				if in.All {
					return c.second, nil
				}
				return c.first, nil
			}
			w.back = func(_ int, in activities.AwaitInput) (bool, error) {
				if in.Plan != kept || in.Part != 1 || !in.Until.Equal(start.Add(window)) {
					t.Errorf("await %+v", in)
				}
				return c.back, nil
			}
			l := w.runLoad()
			kind := ""
			if l.Error != nil {
				kind = l.Error.Kind
			}
			if kind != c.kind || l.Refetched.Lost != c.lost || l.UFSBytes != int64(270+100*len(c.loads)) {
				t.Errorf("%q, %d bytes, lost %d; want %q and %d", kind, l.UFSBytes, l.Refetched.Lost, c.kind, c.lost)
			}
			w.checkMending(c.loads, c.reserves)
		})
	}
}

// checkMending checks what was loaded besides the parts of plan 1, and what
// was reserved for that.
func (w *world) checkMending(loads []activities.PartInput, reserves []activities.ReserveInput) {
	w.t.Helper()
	parts := slices.DeleteFunc(inputsOf[activities.PartInput](w, "LoadPart"), func(p activities.PartInput) bool { return p.Plan == id(1) })
	for _, p := range parts {
		if !slices.Contains(loads, p) {
			w.t.Errorf("loaded %+v", p)
		}
	}
	if len(parts) != len(loads) || w.count("LoadPart") != len(loads)+3 {
		w.t.Errorf("%d parts were loaded, want 3 and %d", w.count("LoadPart"), len(loads))
	}
	if got := inputsOf[activities.ReserveInput](w, "Reserve"); !reflect.DeepEqual(got, reserves) {
		w.t.Errorf("reserved %+v, want %+v", got, reserves)
	}
}

// When mending fails, the others are heard to their end, and what the mending
// had reserved is given back; the plan itself is its round's to give back.
func TestMendingThatFails(t *testing.T) {
	w := newWorld(t)
	w.load = loses(id(1))
	w.mend = func(int, activities.MendInput) (activities.Mended, error) {
		return activities.Mended{Moved: id(50), Parts: []int{0}}, nil
	}
	w.space = func(int, activities.ReserveInput) error { return stoker.Errorf(stoker.KindDenied, "reserve", "", "no") }
	l := w.runLoad()
	if l.Error == nil || l.Error.Kind != "denied" || l.UFSBytes != 270 {
		t.Errorf("%+v, %+v", l, l.Error)
	}
	if back := inputsOf[stoker.ID](w, "GiveBack"); !slices.Equal(back, []stoker.ID{id(50)}) {
		t.Errorf("given back %v", back)
	}
	if w.count("LoadPart") != 3 {
		t.Errorf("%s", w.story())
	}
}

// What the others have no space for waits for the worker, as long as the window
// says.
func TestMendingWithoutSpace(t *testing.T) {
	for _, back := range []bool{true, false} {
		w := newWorld(t)
		w.load = func(n int, in activities.PartInput) (activities.PartLoaded, error) {
			return activities.PartLoaded{UFSBytes: 10, Lost: in.Part == 1 && in.Had == 0, Had: 7}, nil
		}
		w.mend = func(int, activities.MendInput) (activities.Mended, error) {
			return activities.Mended{Moved: id(50), Parts: []int{0}, Kept: id(60)}, nil
		}
		w.space = func(int, activities.ReserveInput) error { return noSpace() }
		w.back = func(_ int, in activities.AwaitInput) (bool, error) {
			if in.Plan != id(1) || in.Part != 1 || !in.Until.Equal(start.Add(window)) {
				t.Errorf("await %+v", in)
			}
			return back, nil
		}
		l := w.runLoad()
		if back && (l.Error != nil || w.count("LoadPart") != 4 || l.Refetched.Lost != 0) ||
			!back && (l.Error == nil || l.Error.Kind != "nospace" || w.count("Mend") != 2) {
			t.Errorf("back %t: %+v, %+v\n%s", back, l, l.Error, w.story())
		}
		// The others may begin after it.
		if all := inputsOf[activities.PartInput](w, "LoadPart"); back && !slices.Contains(all, activities.PartInput{Plan: id(1), Part: 1, Had: 7}) {
			t.Errorf("loaded %+v", all)
		}
	}
}

// Workers that go away again and again end a load, which begins anew.
func TestMendsAreBounded(t *testing.T) {
	w := newWorld(t)
	w.load = func(_ int, in activities.PartInput) (activities.PartLoaded, error) {
		return activities.PartLoaded{Lost: in.Part == 1}, nil
	}
	w.mend = func(n int, _ activities.MendInput) (activities.Mended, error) {
		return activities.Mended{Moved: id(byte(50 + n)), Parts: []int{1}}, nil
	}
	l := w.runLoad()
	if l.Error == nil || l.Error.Kind != "transient" || w.count("Mend") != maxMends || w.count("GiveBack") != maxMends {
		t.Errorf("%+v after %d mends, %d given back", l.Error, w.count("Mend"), w.count("GiveBack"))
	}
}

// A cancelled load gives back what its mending had reserved.
func TestCancelledLoad(t *testing.T) {
	w := newWorld(t)
	w.load = loses(id(1))
	w.mend = func(int, activities.MendInput) (activities.Mended, error) {
		return activities.Mended{Moved: id(50), Parts: []int{0}, Kept: id(60)}, nil
	}
	w.takes["AwaitReturn"] = 24 * time.Hour
	w.back = func(int, activities.AwaitInput) (bool, error) { return false, nil }
	w.at(time.Minute, func() { w.CancelWorkflow() })
	w.SetStartTime(start)
	w.ExecuteWorkflow(Load, LoadInput{Plan: id(1), To: 3, Window: window})
	if err := w.GetWorkflowError(); err == nil || w.Now().Sub(start) > time.Hour {
		t.Errorf("%v after %s", err, w.Now().Sub(start))
	}
	if back := inputsOf[stoker.ID](w, "GiveBack"); !slices.Equal(back, []stoker.ID{id(50)}) {
		t.Errorf("given back %v", back)
	}
}

// A hundred workers are driven by two children, one activity each, whose
// inputs and results stay below 1 KiB whatever the size of the dataset.
func TestPayloadsAreSmall(t *testing.T) {
	w := newWorld(t)
	w.parts = 100
	w.takes["LoadPart"] = time.Minute
	children := map[string]LoadInput{}
	w.SetOnChildWorkflowStartedListener(w.sawChild(children))
	w.load = func(n int, in activities.PartInput) (activities.PartLoaded, error) {
		return activities.PartLoaded{UFSRequests: 1 << 40, UFSBytes: 1 << 50, Refetched: api.Refetched{Lost: 1 << 50, Retry: 1 << 50, Hedge: 1 << 50, Bypass: 1 << 50},
			Failed: 1 << 30, Lost: in.Part == 7 && in.Plan == id(1), Had: 1 << 50}, nil
	}
	w.mend = func(int, activities.MendInput) (activities.Mended, error) {
		m := activities.Mended{Moved: id(50), Kept: id(60)}
		for part := range 100 {
			m.Parts = append(m.Parts, part)
		}
		return m, nil
	}
	w.back = func(int, activities.AwaitInput) (bool, error) { return true, nil }
	w.check = func(int, activities.VerifyInput) (activities.Verified, error) {
		return activities.Verified{Certificate: id(200), State: api.CertificateReady, Objects: 1 << 40, ResidentObjects: 1 << 40}, nil
	}
	w.joinAndLeave("a")
	w.runDataset()
	w.wantTold("a", api.JobReady, "")
	want := map[string]LoadInput{
		"load-c-" + id(1).Short() + "-0": {Plan: id(1), From: 0, To: 64, Window: time.Minute},
		"load-c-" + id(1).Short() + "-1": {Plan: id(1), From: 64, To: 100, Window: time.Minute},
	}
	if !reflect.DeepEqual(children, want) || w.count("LoadPart") != 100+100+1 {
		t.Errorf("children %+v, %d parts", children, w.count("LoadPart"))
	}
	for name, n := range w.largest {
		if n > 1<<10 {
			t.Errorf("%s takes or gives %d bytes of JSON", name, n)
		}
	}
	for _, name := range []string{"Plan", "Reserve", "LoadPart", "Mend", "AwaitReturn", "Verify", "PutLeases"} {
		if w.largest[name] == 0 {
			t.Errorf("%s was not measured", name)
		}
	}
}

// A claim of as many datasets as may be stays far below what Temporal takes.
func TestLargestClaimIsSmall(t *testing.T) {
	in := claim(OnMissStart, time.Hour)
	in.Datasets = nil
	for n := range 64 {
		in.Datasets = append(in.Datasets, JobDataset{Name: fmt.Sprintf("dataset-with-a-long-name-%040d", n), Manifest: id(byte(n)), ListedAt: start,
			Bytes: 1 << 50, Generation: 1000, Dir: "/mnt/some/folder/of/the/job/dataset"})
	}
	s := JobState{Input: in, State: api.JobReady, Outcomes: make([]Outcome, len(in.Datasets))}
	for i := range s.Outcomes {
		s.Outcomes[i] = Outcome{State: api.JobReady, Certificate: id(byte(i))}
	}
	if body, err := json.Marshal(s); err != nil || len(body) > 64<<10 {
		t.Errorf("%d bytes, %v", len(body), err)
	}
}
