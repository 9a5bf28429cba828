package manifest

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"stoker.dev"
)

// Pin is a person's hold on one generation of a dataset. An owner has at most
// one of a generation.
type Pin struct {
	Owner      string    `json:"owner"`
	Generation int       `json:"generation"`
	Manifest   stoker.ID `json:"manifest"`
	Reason     string    `json:"reason"`
	Since      time.Time `json:"since"`
	Until      time.Time `json:"until"`
}

// DatasetPins are a dataset's pins, those that have expired included.
type DatasetPins struct {
	Dataset string `json:"dataset"`
	Pins    []Pin  `json:"pins"`
}

// InForce returns the pins that have not expired.
func (d *DatasetPins) InForce(now time.Time) []Pin {
	var out []Pin
	for _, p := range d.Pins {
		if p.Until.After(now) {
			out = append(out, p)
		}
	}
	return out
}

const pinsPrefix = "pins/"

func pinsName(dataset string) string { return pinsPrefix + dataset + ".json" }

// Pins reads a dataset's pins; none is no error.
func (s *Store) Pins(ctx context.Context, dataset string) (*DatasetPins, error) {
	d, _, err := s.pins(ctx, dataset)
	return d, err
}

// pins also returns the tag of what is there, "" for nothing.
func (s *Store) pins(ctx context.Context, dataset string) (*DatasetPins, string, error) {
	if err := ValidateName(dataset); err != nil {
		return nil, "", err
	}
	d := &DatasetPins{Dataset: dataset}
	body, tag, err := s.objects.Get(ctx, pinsName(dataset))
	if stoker.KindOf(err) == stoker.KindNotExist {
		return d, "", nil
	} else if err != nil {
		return nil, "", err
	}
	if err := json.Unmarshal(body, d); err != nil {
		return nil, "", stoker.Errorf(stoker.KindCorrupt, "pins", dataset, "%w", err)
	}
	return d, tag, nil
}

// AllPins reads the pins of all datasets that have some, sorted by name.
func (s *Store) AllPins(ctx context.Context) ([]*DatasetPins, error) {
	names, err := s.objects.List(ctx, pinsPrefix)
	if err != nil {
		return nil, err
	}
	var out []*DatasetPins
	for _, n := range names {
		d, err := s.Pins(ctx, strings.TrimSuffix(strings.TrimPrefix(n, pinsPrefix), ".json"))
		if err != nil {
			return nil, err
		}
		if len(d.Pins) > 0 {
			out = append(out, d)
		}
	}
	return out, nil
}

// pinTries bounds how often a change is made anew because another one came
// between.
const pinTries = 20

// ChangePins changes a dataset's pins. It may call change several times, each
// time with what is there now: changes by others at the same time are not lost.
// An error of change ends it, and nothing is written.
func (s *Store) ChangePins(ctx context.Context, dataset string, change func(*DatasetPins) error) error {
	for try := 1; ; try++ {
		d, tag, err := s.pins(ctx, dataset)
		if err != nil {
			return err
		}
		if err := change(d); err != nil {
			return err
		}
		if d.Pins == nil {
			d.Pins = []Pin{}
		}
		slices.SortFunc(d.Pins, func(a, b Pin) int { return a.Since.Compare(b.Since) })
		body, err := json.MarshalIndent(d, "", "  ")
		if err != nil {
			return stoker.Errorf(stoker.KindInternal, "pins", dataset, "%w", err)
		}
		if tag == "" {
			_, err = s.objects.PutIfAbsent(ctx, pinsName(dataset), body)
		} else {
			_, err = s.objects.ReplaceIf(ctx, pinsName(dataset), body, tag)
		}
		if stoker.KindOf(err) == stoker.KindHeld && try < pinTries {
			continue
		} else if stoker.KindOf(err) == stoker.KindHeld {
			err = stoker.Errorf(stoker.KindBusy, "pins", dataset, "are changed by others all the time: try again")
		}
		return err
	}
}

// RemovePins forgets a dataset's pins, with the dataset.
func (s *Store) RemovePins(ctx context.Context, dataset string) error {
	if err := ValidateName(dataset); err != nil {
		return err
	}
	return s.objects.Delete(ctx, pinsName(dataset))
}
