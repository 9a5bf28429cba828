package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// logged is what a daemon with these flags writes for one warning.
func logged(t *testing.T, args ...string) (string, error) {
	t.Helper()
	root := rootCommand()
	var out bytes.Buffer
	root.SetErr(&out)
	for _, c := range root.Commands() {
		c.RunE = func(cmd *cobra.Command, _ []string) error {
			log, err := logger(cmd)
			if err == nil {
				log.Warn("a load was stopped", "dataset", "pets", "job", "j 1")
				log.Debug("not shown")
			}
			return err
		}
	}
	root.SetArgs(args)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

func TestLogFormats(t *testing.T) {
	for _, daemon := range []string{"worker", "controller"} {
		for format, check := range map[string]func(line string) bool{
			"text": func(line string) bool {
				return strings.Contains(line, `level=WARN msg="a load was stopped" dataset=pets job="j 1"`)
			},
			"json": func(line string) bool {
				var v struct{ Level, Msg, Dataset, Job string }
				return json.Unmarshal([]byte(line), &v) == nil && v.Level == "WARN" && v.Msg == "a load was stopped" && v.Dataset == "pets" && v.Job == "j 1"
			},
		} {
			out, err := logged(t, daemon, "--log-format", format)
			if err != nil || strings.Count(out, "\n") != 1 || !check(out) {
				t.Errorf("%s --log-format %s: %v: %s", daemon, format, err, out)
			}
		}
		if out, err := logged(t, daemon); err != nil || !strings.Contains(out, "level=WARN") {
			t.Errorf("%s: the default is text: %v: %s", daemon, err, out)
		}
		if _, err := logged(t, daemon, "--log-format", "xml"); exitCode(err) != 2 || !strings.Contains(err.Error(), "want text or json") {
			t.Errorf("xml: %v", err)
		}
	}
	t.Setenv("STOKER_LOG_FORMAT", "json")
	if out, err := logged(t, "worker"); err != nil || !strings.HasPrefix(out, "{") {
		t.Errorf("from the environment: %v: %s", err, out)
	}
}
