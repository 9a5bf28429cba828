package main

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"

	"stoker.dev"
	"stoker.dev/internal/api"
)

const (
	defaultController = "unix:///run/stoker/controller.sock"
	defaultSocket     = "/run/stoker/worker.sock"
)

// settings are what may come from flags, the environment and config files.
// "" = not set there.
type settings struct {
	Controller string `json:"controller,omitempty"`
	Socket     string `json:"socket,omitempty"`
	TokenFile  string `json:"token-file,omitempty"`
	Output     string `json:"output,omitempty"`
}

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
	s := a.flags.or(settings{
		Controller: a.env("STOKER_CONTROLLER"), Socket: a.env("STOKER_SOCKET"),
		TokenFile: a.env("STOKER_TOKEN_FILE"), Output: a.env("STOKER_OUTPUT"),
	})
	var files []string
	if dir := a.env("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		files = append(files, filepath.Join(dir, "stoker", "config.yaml"))
	} else if home := a.env("HOME"); home != "" {
		files = append(files, filepath.Join(home, ".config", "stoker", "config.yaml"))
	}
	for _, path := range append(files, a.etc) {
		f, err := readConfig(path)
		if err != nil {
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

// readConfig reads one config file; one that is not there sets nothing. Keys
// that do not exist are errors: a typo must not be lost.
func readConfig(path string) (settings, error) {
	var s settings
	body, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = yaml.UnmarshalStrict(body, &s)
	}
	if err != nil {
		return s, stoker.Errorf(stoker.KindInvalid, "config", path, "%w: known keys are controller, socket, token-file and output", err)
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
	})
}

// node makes the client of this node's worker.
func (a *app) node() (*api.Node, error) {
	return api.NewNode(api.ClientOptions{
		URL:  a.chosen.Socket,
		Hint: "start 'stokerd worker' on this node (or 'stoker-dev up'), or say where its socket is with STOKER_SOCKET",
	})
}
