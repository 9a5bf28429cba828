package redisplace

import (
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"stoker.dev"
)

// Server tells the server's own time; an embedded one may keep its version to
// itself, one that is gone is Transient.
func TestServer(t *testing.T) {
	m := miniredis.RunT(t)
	then := time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)
	m.SetTime(then)
	x, err := Open(Options{Address: m.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	if _, now, err := x.Server(t.Context()); err != nil || !now.Equal(then) {
		t.Errorf("%v, %v", now, err)
	}
	m.Close()
	if _, _, err := x.Server(t.Context()); stoker.KindOf(err) != stoker.KindTransient || err == nil {
		t.Errorf("gone: %v", err)
	}
}
