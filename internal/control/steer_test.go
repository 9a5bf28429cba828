package control

import (
	"testing"

	"stoker.dev"
	"stoker.dev/internal/api"
	"stoker.dev/workflows"
)

// Whoever owns all jobs that wait may pause their load, any of those resume it.
func TestMaySteer(t *testing.T) {
	both := []workflows.Holder{{Job: "a", Owner: "ann"}, {Job: "b", Owner: "bob"}}
	ann, eve := api.Principal{Name: "ann"}, api.Principal{Name: "eve"}
	for name, c := range map[string]struct {
		waiting    []workflows.Holder
		who        api.Principal
		may, pause bool
		ok         bool
	}{
		"pause, all mine":         {both[:1], ann, false, true, true},
		"pause, one another's":    {both, ann, false, true, false},
		"pause, an admin":         {both, eve, true, true, true},
		"pause, nobody":           {both, eve, false, true, false},
		"resume, one of them":     {both, ann, false, false, true},
		"resume, nobody":          {both, eve, false, false, false},
		"resume, who paused, too": {both, eve, true, false, true},
	} {
		err := maySteer("d", c.waiting, c.who, c.may, c.pause)
		if (err == nil) != c.ok || err != nil && stoker.KindOf(err) != stoker.KindDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
}
