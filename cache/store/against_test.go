package store

import (
	"testing"

	"stoker.dev"
)

// A promise may stand against space that its owner will give up: until he has,
// he gets no more than there is, and nobody else gets any, also in a next life.
func TestReserveAgainst(t *testing.T) {
	old := Spec{ID: stoker.ID{1}, Bytes: 8 << 20, Blocks: 32}
	fresh := Spec{ID: stoker.ID{2}, Bytes: 8 << 20, Blocks: 32}
	other := Spec{ID: stoker.ID{3}, Bytes: 1 << 20, Blocks: 4}
	s := open(t, t.TempDir(), 16<<20)
	sh, err := s.Create(old, "")
	if err != nil {
		t.Fatal(err)
	}
	sh.Release()
	charge := s.ChargeBytes(fresh.Bytes, fresh.Blocks)
	refused := func(what string, err error) {
		t.Helper()
		if stoker.KindOf(err) != stoker.KindNoSpace {
			t.Fatalf("%s: %v", what, err)
		}
	}
	refused("a promise of what is used", s.Reserve("load", charge))
	refused("a promise against too little", s.ReserveAgainst("load", charge, charge, 1<<20))
	if err := s.ReserveAgainst("load", -1, charge, 0); stoker.KindOf(err) != stoker.KindInvalid {
		t.Fatalf("a negative promise: %v", err)
	}
	if err := s.ReserveAgainst("load", charge, charge, charge); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, err = s.Create(fresh, "load")
		refused("drawn before anything was given up", err)
		_, err = s.Create(other, "")
		refused("space for somebody else", err)
		refused("a promise to somebody else", s.Reserve("other", 1<<20))
		s = reopen(t, s)
	}
	if err := s.Remove(old.ID); err != nil {
		t.Fatal(err)
	}
	sh, err = s.Create(fresh, "load")
	if err != nil {
		t.Fatal(err)
	}
	sh.Release()
	if u := s.Usage(); u.ReservedBytes != 0 || u.UsedBytes > u.CapacityBytes {
		t.Errorf("%+v", u)
	}
}
