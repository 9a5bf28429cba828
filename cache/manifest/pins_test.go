package manifest

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/ufs/folder"
)

// Changes at the same time are all there in the end; an error changes nothing.
func TestPinsChangeTogether(t *testing.T) {
	objects, err := folder.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := NewStore(objects, t.TempDir())
	until := time.Now().UTC().Add(time.Hour)
	const owners = 8
	var all sync.WaitGroup
	for i := range owners {
		all.Go(func() {
			err := s.ChangePins(t.Context(), "pets", func(d *DatasetPins) error {
				d.Pins = append(d.Pins, Pin{Owner: fmt.Sprint(i), Until: until})
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	refused := stoker.Errorf(stoker.KindDenied, "test", "", "no")
	if err := s.ChangePins(t.Context(), "pets", func(d *DatasetPins) error { d.Pins = nil; return refused }); stoker.KindOf(err) != stoker.KindDenied {
		t.Errorf("refused: %v", err)
	}
	d, err := s.AllPins(t.Context())
	if err != nil || len(d) != 1 || d[0].Dataset != "pets" || len(d[0].InForce(until.Add(-time.Second))) != owners || len(d[0].InForce(until)) != 0 {
		t.Fatalf("%+v, %v", d, err)
	}
	if err := s.RemovePins(t.Context(), "pets"); err != nil {
		t.Fatal(err)
	}
	if d, err := s.Pins(t.Context(), "pets"); err != nil || len(d.Pins) != 0 {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := s.Pins(t.Context(), "../pets"); stoker.KindOf(err) != stoker.KindInvalid {
		t.Errorf("a name that is none: %v", err)
	}
}
