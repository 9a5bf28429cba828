package main

import (
	"cmp"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"stoker.dev"
	"stoker.dev/cmd/internal/config"
	"stoker.dev/internal/api"
)

const (
	defaultController = "unix:///run/stoker/controller.sock"
	defaultSocket     = "/run/stoker/worker.sock"
)

// settings are what may come from flags, the environment and config files.
// "" = not set there.
type settings struct{ Controller, Socket, TokenFile, Output string }

// or fills what s leaves open from t.
func (s settings) or(t settings) settings {
	pick := func(a, b string) string {
		if a != "" {
			return a
		}
		return b
	}
	return settings{pick(s.Controller, t.Controller), pick(s.Socket, t.Socket), pick(s.TokenFile, t.TokenFile), pick(s.Output, t.Output)}
}

// env returns a variable of the environment; the last setting of it counts.
func (a *app) env(name string) string {
	for i := len(a.environ) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(a.environ[i], name+"="); ok {
			return v
		}
	}
	return ""
}

// settings joins all sources: flag, environment, the user's file, the site's.
func (a *app) settings() (settings, error) {
	var outside settings
	for key, to := range outside.keys() {
		*to = a.env(variable(key))
	}
	s := a.flags.or(outside)
	var files []string
	ofHome := ""
	if dir := a.env("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		files = append(files, filepath.Join(dir, "stoker", "config.yaml"))
	} else if home := a.env("HOME"); home != "" {
		ofHome = filepath.Join(home, ".config", "stoker", "config.yaml")
		files = append(files, ofHome)
	}
	for _, path := range append(files, a.etc) {
		f, err := readConfig(path)
		if errors.Is(err, fs.ErrPermission) && path == ofHome && a.foreignHome() {
			continue
		} else if err != nil {
			return s, err
		}
		s = s.or(f)
	}
	s = s.or(settings{Controller: defaultController, Socket: defaultSocket, Output: "table"})
	switch s.Output {
	case "table", "json", "yaml":
		return s, nil
	}
	return s, stoker.Errorf(stoker.KindInvalid, "output", s.Output, "is no format: use table, json or yaml")
}

// foreignHome reports whether HOME is another user's, as for a daemon that root
// started and that then became a user, and for its hooks: no file there is theirs.
func (a *app) foreignHome() bool {
	fi, err := os.Stat(a.env("HOME"))
	if err != nil {
		return false
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) != os.Geteuid()
}

// keys are the settings as config files have them.
func (s *settings) keys() map[string]*string {
	return map[string]*string{"controller": &s.Controller, "socket": &s.Socket, "token-file": &s.TokenFile, "output": &s.Output}
}

// variable is the environment's name of a setting.
func variable(key string) string {
	return "STOKER_" + strings.ToUpper(strings.ReplaceAll(key, "-", "_"))
}

// readConfig reads one config file; one that is not there sets nothing. Keys
// that do not exist are errors: a typo must not be lost.
func readConfig(path string) (settings, error) {
	var s settings
	file, err := config.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	} else if errors.Is(err, fs.ErrPermission) {
		return s, stoker.Errorf(stoker.KindDenied, "config", "", "%w: whoever runs stoker has to be able to read it", err)
	} else if err != nil {
		return s, stoker.Errorf(stoker.KindInvalid, "config", "", "%w: known keys are controller, socket, token-file and output", err)
	}
	keys := s.keys()
	for _, key := range slices.Sorted(maps.Keys(file)) {
		to, ok := keys[key]
		if !ok {
			return s, stoker.Errorf(stoker.KindInvalid, "config", file[key].Where, "no setting is named %q: known keys are controller, socket, token-file and output", key)
		}
		*to = file[key].Text
	}
	return s, nil
}

// controller makes the client of the controller's API. A token file that was
// named must be there, even where the controller asks for no token.
func (a *app) controller() (*api.Controller, error) {
	if path := cmp.Or(a.flags.TokenFile, a.env("STOKER_TOKEN_FILE")); path != "" {
		if _, err := os.ReadFile(path); err != nil {
			kind := stoker.KindInvalid
			if errors.Is(err, fs.ErrPermission) {
				kind = stoker.KindDenied
			}
			return nil, stoker.Errorf(kind, "token file", printable(path), "%w", err)
		}
	}
	return api.NewController(api.ClientOptions{
		URL: a.chosen.Controller, TokenFile: a.chosen.TokenFile,
		Hint: "start 'stokerd controller' (or 'stoker-dev up'), or say where it is with STOKER_CONTROLLER",
		Slow: a.slow,
	})
}

// node makes the client of this node's worker.
func (a *app) node() (*api.Node, error) {
	return api.NewNode(api.ClientOptions{
		URL:  a.chosen.Socket,
		Hint: "start 'stokerd worker' on this node (or 'stoker-dev up'), or say where its socket is with STOKER_SOCKET",
		Slow: a.slow,
	})
}

// slow says that the command waits for an answer.
func (a *app) slow(what, at string) {
	a.console.Note("the %s at %s takes its time; waiting for it", what, printable(at))
}
