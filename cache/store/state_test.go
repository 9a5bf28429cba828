package store

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"stoker.dev"
)

// A note is a document that waits for no disk.
func TestNotesAreNotSynced(t *testing.T) {
	var syncs int
	s, err := Open(Options{Dir: t.TempDir(), CapacityBytes: roomy, watch: func(c change) {
		if strings.HasPrefix(c.op, "sync") {
			syncs++
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	syncs = 0
	for _, body := range []string{"old", "new"} {
		if err := s.PutNote("note", []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	if syncs != 0 {
		t.Errorf("%d syncs", syncs)
	}
	s = reopen(t, s)
	if body, err := s.GetState("note"); err != nil || string(body) != "new" {
		t.Errorf("got %q %v", body, err)
	}
}

func TestStateDocuments(t *testing.T) {
	s := open(t, t.TempDir(), roomy)
	empty := s.Usage().UsedBytes
	for _, name := range []string{"lease-b", "lease-a", "view.1"} {
		for _, body := range []string{strings.Repeat("old", 5000), name} { // the second replaces the first
			if err := s.PutState(name, []byte(body)); err != nil {
				t.Fatal(err)
			}
		}
	}
	used := s.Usage().UsedBytes
	if used != empty+3*(pageBytes+stateOverhead) {
		t.Errorf("%d bytes are charged for 3 small documents", used-empty)
	}
	for range 2 { // as they were put, and after a start
		if names, err := s.ListState("lease-"); err != nil || !slices.Equal(names, []string{"lease-a", "lease-b"}) {
			t.Errorf("listed %v %v", names, err)
		}
		if body, err := s.GetState("view.1"); err != nil || string(body) != "view.1" {
			t.Errorf("got %q %v", body, err)
		}
		if s.Usage().UsedBytes != used {
			t.Errorf("%d bytes are charged, want %d", s.Usage().UsedBytes, used)
		}
		s = reopen(t, s)
	}
	for range 2 { // the second time they are not there
		for _, name := range []string{"lease-b", "lease-a", "view.1"} {
			if err := s.DeleteState(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, err := s.GetState("view.1")
	wantKind(t, err, stoker.KindNotExist)
	if s.Usage().UsedBytes != empty {
		t.Errorf("%d bytes are charged with no documents, want %d", s.Usage().UsedBytes, empty)
	}
}

func TestStateNames(t *testing.T) {
	s := open(t, t.TempDir(), roomy)
	for _, name := range []string{"", ".", "..", ".new-1", "a/b", "../id", "a\x00b", "ä", strings.Repeat("x", 201)} {
		wantKind(t, s.PutState(name, nil), stoker.KindInvalid)
		_, err := s.GetState(name)
		wantKind(t, err, stoker.KindInvalid)
		wantKind(t, s.DeleteState(name), stoker.KindInvalid)
	}
}

// A full store still takes documents: what a worker knows may not depend on it.
func TestStateIsNotRefusedWhenFull(t *testing.T) {
	s := open(t, t.TempDir(), 4<<20)
	if err := s.Reserve("all", 4<<20-baseOverhead); err != nil {
		t.Fatal(err)
	}
	if err := s.PutState("lease", []byte("{}")); err != nil {
		t.Error(err)
	}
}

func TestReserve(t *testing.T) {
	const capacity, free = baseOverhead + 1000, 1000
	s := open(t, t.TempDir(), capacity)
	for _, c := range []struct {
		name  string
		bytes int64
		want  string // "" = granted
	}{
		{"a", 600, ""},
		{"b", 401, "needs 401 bytes, 400 free"},
		{"b", 400, ""},
		{"a", 600, ""}, // again
		{"a", 601, "needs 601 bytes, 600 free"},
		{"a", 500, ""}, // less
		{"c", 100, ""},
		{"c", 0, ""},
	} {
		err := s.Reserve(c.name, c.bytes)
		if c.want == "" && err != nil {
			t.Errorf("%s %d: %v", c.name, c.bytes, err)
		}
		if c.want != "" {
			wantKind(t, err, stoker.KindNoSpace)
			if err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s %d: %q does not say %q", c.name, c.bytes, err, c.want)
			}
		}
	}
	wantKind(t, s.Reserve("", 1), stoker.KindInvalid)
	wantKind(t, s.Reserve("d", -1), stoker.KindInvalid)
	want := map[string]int64{"a": 500, "b": 400, "c": 0}
	for range 2 {
		if got := s.Reservations(); !maps.Equal(got, want) {
			t.Errorf("reserved %v, want %v", got, want)
		}
		if u := s.Usage(); u.ReservedBytes != 900 || u.UsedBytes != capacity-free || u.CapacityBytes != capacity {
			t.Errorf("usage %+v", u)
		}
		s = reopen(t, s)
	}
	for range 2 { // the second time it is not there
		if err := s.Unreserve("a"); err != nil {
			t.Fatal(err)
		}
	}
	if got := reopen(t, s).Reservations(); !maps.Equal(got, map[string]int64{"b": 400, "c": 0}) {
		t.Errorf("reserved %v", got)
	}
}

// Shards are charged to their reservation first, and nobody else gets its bytes.
func TestReservationIsDrawnDown(t *testing.T) {
	one := (&Store{}).ChargeBytes(specOf(1, 10).Bytes, 10)
	s := open(t, t.TempDir(), baseOverhead+4*one)
	if err := s.Reserve("load", 3*one); err != nil {
		t.Fatal(err)
	}
	make := func(n uint64, reservation string) error {
		sh, err := s.Create(specOf(n, 10), reservation)
		if err == nil {
			sh.Release()
		}
		return err
	}
	left := func(want int64) {
		t.Helper()
		if got := s.Reservations()["load"]; got != want*one {
			t.Errorf("%d shards of the reservation are left, want %d", got/one, want)
		}
	}
	for _, c := range []struct {
		n           uint64
		reservation string
		left        int64
		refused     bool
	}{
		{1, "", 3, false},
		{2, "", 3, true},
		{2, "other", 3, true},
		{2, "load", 2, false},
		{2, "load", 2, false}, // is there already
		{3, "load", 1, false},
		{4, "load", 0, false},
		{5, "load", 0, true},
	} {
		err := make(c.n, c.reservation)
		if c.refused {
			wantKind(t, err, stoker.KindNoSpace)
		} else if err != nil {
			t.Error(err)
		}
		left(c.left)
	}
	if u := s.Usage(); u.UsedBytes != u.CapacityBytes || u.ReservedBytes != 0 {
		t.Errorf("usage %+v", u)
	}
}

// A load goes on after a restart within what was promised to it before, though
// draws are not written down; the limit holds all the same.
func TestReservationHoldsAfterRestart(t *testing.T) {
	one := (&Store{}).ChargeBytes(specOf(1, 10).Bytes, 10)
	s := open(t, t.TempDir(), baseOverhead+4*one)
	if err := s.Reserve("load", 4*one); err != nil {
		t.Fatal(err)
	}
	for n := range uint64(4) {
		sh, err := s.Create(specOf(n, 10), "load")
		if err != nil {
			t.Fatalf("shard %d: %v", n, err)
		}
		sh.Release()
		s = reopen(t, s)
		_, err = s.Create(specOf(99, 10), "")
		wantKind(t, err, stoker.KindNoSpace)
	}
	_, err := s.Create(specOf(4, 10), "load")
	wantKind(t, err, stoker.KindNoSpace)
	if u := s.Usage(); u.UsedBytes > u.CapacityBytes {
		t.Errorf("usage %+v", u)
	}
}

func TestDamagedReservations(t *testing.T) {
	for body, want := range map[string]stoker.Kind{
		"null":                      stoker.KindInternal, // none
		`{"a":-5,"b":7}`:            stoker.KindInternal,
		`{"a":`:                     stoker.KindCorrupt,
		`["a"]`:                     stoker.KindCorrupt,
		"":                          stoker.KindCorrupt,
		`{"a":9999999999999999999}`: stoker.KindCorrupt,
	} {
		t.Run(fmt.Sprintf("%q", body), func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, reservationsFile), []byte(body), 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := Open(Options{Dir: dir, CapacityBytes: roomy})
			if want != stoker.KindInternal {
				wantKind(t, err, want)
				return
			} else if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			if err := s.Reserve("a", 5); err != nil || s.Reservations()["a"] != 5 {
				t.Errorf("%v %v", s.Reservations(), err)
			}
		})
	}
}
