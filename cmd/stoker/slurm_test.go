package main

import (
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"stoker.dev/internal/api"
)

// The hooks have a token of their own beside the site's config file, which other
// commands do not use; one that is named goes before it.
func TestTokenOfTheHooks(t *testing.T) {
	var got string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Get("Authorization")
		api.WriteJSON(w, http.StatusOK, []api.JobLine{})
	}))
	defer srv.Close()
	g := newRig(t, nil, nil)
	g.environ = append(g.environ, "STOKER_CONTROLLER="+srv.URL)
	users, named := filepath.Join(g.dir, "users"), filepath.Join(g.dir, "named")
	write(t, users, "alice 0123456789abcdef-users")
	write(t, named, "0123456789abcdef-named")
	write(t, g.etc, "token-file: "+users+"\n")
	hook := []string{"slurm", "show", "--cluster", "c"}
	for _, step := range []struct {
		args []string
		want string
	}{{hook, "users"}, {hook, "hooks"}, {[]string{"jobs"}, "users"}, {append(hook, "--token-file", named), "named"}} {
		if step.want == "hooks" {
			write(t, filepath.Join(filepath.Dir(g.etc), "slurm.token"), "stoker 0123456789abcdef-hooks\n")
		}
		g.want(0, step.args...)
		if want := "Bearer 0123456789abcdef-" + step.want; got != want {
			t.Errorf("%v: sent %q, want %q", step.args, got, want)
		}
	}
}
