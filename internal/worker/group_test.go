package worker

import (
	"testing"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// A view's files get a group of the caller's: his own unless he names another
// that he is a member of.
func TestGroupOf(t *testing.T) {
	gid := func(n uint32) *uint32 { return &n }
	for name, c := range map[string]struct {
		uid   int
		gids  []uint32
		asked *uint32
		want  *uint32
		kind  stoker.Kind
	}{
		"his own":               {uid: 7, gids: []uint32{70, 71}, want: gid(70)},
		"one that he is in":     {uid: 7, gids: []uint32{70, 71}, asked: gid(71), want: gid(71)},
		"one that he is not in": {uid: 7, gids: []uint32{70, 71}, asked: gid(0), kind: stoker.KindDenied},
		"not the uid's number":  {uid: 7, gids: []uint32{70}, asked: gid(7), kind: stoker.KindDenied},
		"groups not known":      {uid: 7, asked: gid(70), kind: stoker.KindDenied},
		"root's choice":         {gids: []uint32{0}, asked: gid(70), want: gid(70)},
		"root's default":        {gids: []uint32{0}},
	} {
		req := api.MountRequest{GID: c.asked}
		err := groupOf(api.Principal{UID: c.uid}, c.gids, &req)
		if c.kind != stoker.KindInternal {
			if stoker.KindOf(err) != c.kind {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || (req.GID == nil) != (c.want == nil) || c.want != nil && *req.GID != *c.want {
			t.Errorf("%s: %v (%v)", name, req.GID, err)
		}
	}
}
