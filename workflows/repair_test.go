package workflows

import (
	"testing"

	"stoker.dev"
	"stoker.dev/activities"
)

// A repair copies what is missing, each part once and from workers alone, and drops
// what there is too much; it says why it did not come to its end, and then gives
// space back. Nothing is dropped of which it is not known who has it.
func TestRepair(t *testing.T) {
	away := stoker.Errorf(stoker.KindTransient, "copies", "", "not all workers say what they have")
	planned := activities.CopiesPlanned{Plan: id(7), Parts: []int{0, 2}, Bytes: 100}
	short := planned
	short.ShortBytes, short.FreeBytes = 3<<20, 1<<20
	for name, c := range map[string]struct {
		in     RepairInput
		copies activities.CopiesPlanned
		fails  error // to count
		space  error
		lost   bool
		story  string
		kind   string
		enough bool
	}{
		"nothing to do":      {story: "PlanCopies DropCopies", enough: true},
		"copies":             {copies: planned, story: "PlanCopies Reserve LoadPart DropCopies"},
		"no room for all":    {copies: short, story: "PlanCopies Reserve LoadPart DropCopies", kind: "nospace"},
		"no room for spare":  {in: RepairInput{Spare: true}, copies: short, story: "PlanCopies Reserve LoadPart DropCopies"},
		"no room for any":    {copies: activities.CopiesPlanned{ShortBytes: 5}, story: "PlanCopies DropCopies", kind: "nospace"},
		"refused":            {copies: planned, space: noSpace(), story: "PlanCopies Reserve DropCopies", kind: "nospace"},
		"a worker is silent": {fails: away, story: "PlanCopies", kind: "transient"},
		"a worker goes away": {copies: planned, lost: true, story: "PlanCopies Reserve LoadPart GiveBack", kind: "transient"},
		"only drop":          {in: RepairInput{Spare: true, Drop: true}, story: "DropCopies", enough: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.copies = func(int, activities.CopiesInput) (activities.CopiesPlanned, error) { return c.copies, c.fails }
			w.drop = func(int, activities.DropInput) (activities.Dropped, error) { return activities.Dropped{}, nil }
			w.space = func(int, activities.ReserveInput) error { return c.space }
			w.load = func(_ int, in activities.PartInput) (activities.PartLoaded, error) {
				return activities.PartLoaded{Lost: c.lost && in.Part == 2}, nil
			}
			in := c.in
			in.Dataset, in.Manifest, in.Replicas = "data", id(1), 2
			w.ExecuteWorkflow(repairWorkflow, in)
			w.finished()
			if got := w.story(); got != c.story {
				t.Errorf("%s, want %s", got, c.story)
			}
			var s RepairState
			w.query(&s)
			kind := ""
			if s.Error != nil {
				kind = s.Error.Kind
			}
			if kind != c.kind || s.Copying || s.Enough() != c.enough {
				t.Errorf("it ends as %+v (%v)", s, s.Error)
			}
			for _, p := range inputsOf[activities.PartInput](w, "LoadPart") {
				if !p.Copies || p.Plan != id(7) {
					t.Errorf("it loads %+v", p)
				}
			}
			for _, r := range inputsOf[activities.ReserveInput](w, "Reserve") {
				if r.Spare != in.Spare || !r.Copies {
					t.Errorf("it reserves %+v", r)
				}
			}
		})
	}
}
