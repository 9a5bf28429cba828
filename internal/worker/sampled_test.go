package worker

import (
	"strings"
	"testing"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// What no view can be read by is refused before anything is opened or mounted.
func TestSamplersOfViews(t *testing.T) {
	some := &api.Selection{Paths: []string{"train"}}
	for name, c := range map[string]struct {
		sampler string
		some    *api.Selection
		says    string // "" = it is taken
	}{
		"none":                {},
		"of all":              {sampler: "pytorch:seed=0,world=8"},
		"of some":             {sampler: "pytorch:world=8", some: some},
		"no order":            {sampler: "pytorch:seed=0", says: "lacks world=N"},
		"of another release":  {sampler: "mosaic:seed=0", says: "is not known"},
		"files without order": {some: some, says: "goes with a sampler"},
		"no path":             {sampler: "pytorch:world=8", some: &api.Selection{Paths: []string{".."}}, says: "is no path"},
	} {
		r := api.MountRequest{Dataset: "data", Dir: "/nowhere", Sampler: c.sampler, Selection: c.some}
		err := (&views{}).check(0, &r)
		if (err == nil) != (c.says == "") || err != nil && (stoker.KindOf(err) != stoker.KindInvalid || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What the kernel is to read ahead is within bounds, whoever asks.
func TestReadAheadOfViews(t *testing.T) {
	for bytes, taken := range map[int64]bool{-1: false, 0: true, 4096: true, api.MostKernelReadAhead: true, api.MostKernelReadAhead + 1: false} {
		r := api.MountRequest{Dataset: "data", Dir: "/nowhere", KernelReadAheadBytes: &bytes}
		if err := (&views{}).check(0, &r); (err == nil) != taken || !taken && stoker.KindOf(err) != stoker.KindInvalid {
			t.Errorf("%d: %v", bytes, err)
		}
	}
}
