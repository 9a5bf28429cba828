// Package slurm is what Slurm's hooks do: it reads the #STOKER directives of a
// job, claims what they name, waits for it, mounts it on the job's nodes and lets
// it go. The hooks themselves (deploy/slurm) only call it. The controller knows a
// job of Slurm as slurm-CLUSTER-ID.
package slurm

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
	"stoker.dev/planner/order"
)

const (
	directive      = "#STOKER"
	maxScriptBytes = 4 << 20 // as slurmctld's default of max_script_size
	maxReplicas    = 16      // what a controller grants
	maxDeadline    = 30 * 24 * time.Hour
	maxShown       = 80 // bytes of a user's text in a message
)

// keys are those that a directive may have. A key of which the rest of stoker
// knows nothing is refused, never ignored.
const keys = "dataset, path, include, exclude, mount, deadline, onmiss, layout, replicas, sampler"

// want is what the directives of one job ask for: one claim.
type want struct {
	datasets []api.DatasetRef // Dir: where mount= says, else ""
	onMiss   string           // start, wait or fail
	deadline *time.Duration   // counted from the begin of the stage-in; nil = none
	layout   string
	replicas int // 0 = the controller's default
	sampler  string
}

var nameOf = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}(@[1-9][0-9]{0,8})?$`)

// readScript reads the directives of a script, which Slurm keeps for each job,
// also for one without: then the lines come from --bb.
func readScript(path string) (*want, error) {
	f, err := os.Open(path)
	if err != nil {
		kind := stoker.KindInternal
		if errors.Is(err, os.ErrNotExist) {
			kind = stoker.KindNotExist
		}
		return nil, stoker.Errorf(kind, "job script", shown(path), "%w", err)
	}
	defer f.Close()
	lines, err := directives(f)
	if err != nil {
		return nil, stoker.Errorf(stoker.KindInvalid, "job script", shown(path), "%w", err)
	}
	return parse(lines)
}

// directives returns the lines that begin with #STOKER, as Slurm finds them: up
// to the first line that is neither empty nor a comment.
func directives(r io.Reader) (found []string, err error) {
	lines := bufio.NewScanner(io.LimitReader(r, maxScriptBytes))
	lines.Buffer(nil, 64<<10)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		switch {
		case line == "":
			continue
		case line[0] != '#':
			return found, nil
		case isDirective(line):
			found = append(found, line)
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) && len(found) > 0 {
		return found, nil // a long line behind them is not theirs
	}
	return found, lines.Err()
}

func isDirective(line string) bool {
	rest, ok := strings.CutPrefix(line, directive)
	return ok && (rest == "" || rest[0] == ' ' || rest[0] == '\t')
}

// parse reads the directives of one job. Each names a dataset; what they say of
// the job as a whole may stand on any of them, but not twice in two ways.
func parse(lines []string) (*want, error) {
	w := &want{onMiss: "start", layout: "auto"}
	said := map[string]string{} // key of the whole job → its value
	for _, line := range lines {
		if err := w.line(line, said); err != nil {
			return nil, err
		}
	}
	if len(w.datasets) == 0 {
		return nil, stoker.Errorf(stoker.KindInvalid, "directive", "", "the job names no data: write '%s dataset=NAME'", directive)
	}
	return w, w.apart()
}

// line reads one directive.
func (w *want) line(line string, said map[string]string) error {
	bad := func(format string, args ...any) error {
		return stoker.Errorf(stoker.KindInvalid, "directive", shown(line), format, args...)
	}
	var ref api.DatasetRef
	var some api.Selection
	for _, word := range strings.Fields(line)[1:] {
		key, value, ok := strings.Cut(word, "=")
		if !ok || value == "" {
			return bad("%q is no KEY=VALUE: the keys are %s", shown(word), keys)
		}
		switch key {
		case "dataset":
			if ref.Name != "" {
				return bad("names two datasets: give each a line of its own")
			}
			if !nameOf.MatchString(value) {
				return bad("%q is no dataset: write dataset=NAME or dataset=NAME@GENERATION, a name that 'stoker dataset ls' shows", shown(value))
			}
			name, generation, _ := strings.Cut(value, "@")
			ref.Name = name
			ref.Generation, _ = strconv.Atoi(generation) // digits, as nameOf has seen; "" is 0
		case "mount":
			if ref.Dir != "" || !filepath.IsAbs(value) || filepath.Clean(value) != value || value == "/" {
				return bad("mount=%s: want one absolute folder, without . and .. and a slash behind it", shown(value))
			}
			ref.Dir = value
		case "path", "include", "exclude":
			if err := narrow(&some, key, value); err != nil {
				return bad("%w", err)
			}
		case "deadline", "onmiss", "layout", "replicas", "sampler":
			if other, twice := said[key]; twice && other != value {
				return bad("%s=%s, and %s=%s before it: they hold for the whole job, say one", key, shown(value), key, shown(other))
			}
			said[key] = value
			if err := w.set(key, value); err != nil {
				return bad("%w", err)
			}
		default:
			return bad("the key %q is not known here: the keys are %s", shown(key), keys)
		}
	}
	if ref.Name == "" {
		return bad("names no dataset: write '%s dataset=NAME'", directive)
	}
	if _, err := some.Key(); err != nil { // each is right: they are too many
		return bad("path=, include= and exclude= are longer than 2 KiB together: freeze a dataset of what you want, or take fewer patterns")
	}
	if !some.Empty() {
		ref.Selection = &some
	}
	w.datasets = append(w.datasets, ref)
	return nil
}

// narrow takes path=, include= or exclude=, each as often as it stands on a line.
func narrow(s *api.Selection, key, value string) error {
	var one api.Selection
	list, of := &s.Paths, &one.Paths
	switch key {
	case "include":
		list, of = &s.Include, &one.Include
	case "exclude":
		list, of = &s.Exclude, &one.Exclude
	}
	*list, *of = append(*list, value), []string{value}
	if _, err := one.Key(); err != nil {
		if e := (*stoker.Error)(nil); errors.As(err, &e) {
			err = e.Err // what is wrong, without the value once more
		}
		return errors.New(key + "=" + shown(value) + ": " + err.Error())
	}
	return nil
}

// selected is a selection as its directive says it, "" of none.
func selected(s *api.Selection) string {
	if s == nil {
		return ""
	}
	var b strings.Builder
	for _, list := range []struct {
		key string
		of  []string
	}{{"path", s.Paths}, {"include", s.Include}, {"exclude", s.Exclude}} {
		for _, v := range list.of {
			b.WriteString(" " + list.key + "=" + shown(v))
		}
	}
	return b.String()
}

// set takes a key that holds for the whole job.
func (w *want) set(key, value string) error {
	switch key {
	case "deadline":
		d, err := time.ParseDuration(value)
		if err != nil || d < 0 || d > maxDeadline {
			return errors.New("deadline=" + shown(value) + ": want a time such as 90s, 30m or 2h")
		}
		w.deadline = &d
	case "onmiss":
		if !slices.Contains([]string{"start", "wait", "fail"}, value) {
			return errors.New("onmiss=" + shown(value) + ": want start, wait or fail")
		}
		w.onMiss = value
	case "layout":
		if value != "auto" && value != layoutLocal && value != layoutSpread {
			return errors.New("layout=" + shown(value) + ": want auto, local or spread")
		}
		w.layout = value
	case "replicas":
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 || n > maxReplicas {
			return errors.New("replicas=" + shown(value) + ": want 1 to " + strconv.Itoa(maxReplicas))
		}
		w.replicas = n
	case "sampler":
		s, err := order.Parse(value)
		if e := (*stoker.Error)(nil); errors.As(err, &e) {
			return fmt.Errorf("sampler=%s: %w", shown(value), e.Err)
		}
		w.sampler = s.String()
	}
	return nil
}

// apart checks that no two datasets share a name or a folder.
func (w *want) apart() error {
	names, dirs := map[string]bool{}, map[string]bool{}
	for _, d := range w.datasets {
		if names[d.Name] {
			return stoker.Errorf(stoker.KindInvalid, "directive", d.Name, "is named twice: once is enough, with as many path= as you like")
		}
		if d.Dir != "" && dirs[d.Dir] {
			return stoker.Errorf(stoker.KindInvalid, "directive", shown(d.Dir), "two datasets cannot be mounted on one folder")
		}
		names[d.Name], dirs[d.Dir] = true, true
	}
	return nil
}

// shown makes a user's text fit for a message: printable and short.
func shown(s string) string {
	if len(s) > maxShown {
		s = s[:maxShown] + "…"
	}
	return strings.Trim(strconv.QuoteToGraphic(s), `"`)
}
