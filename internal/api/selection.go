package api

import (
	"encoding/json"
	"path"
	"slices"
	"strings"

	"stoker.dev"
)

// Selection is some of a dataset's objects, by their paths in its tree: those at
// or below one of Paths, all if there are none; of these those that a pattern of
// Include matches, all if there are none; without those that one of Exclude does.
//
// A pattern matches an object if it matches its path or that of a folder above
// it. One without a slash is compared with each name on the path; one with a
// slash, other than at its end, with the path from the root on, where ** stands for
// any number of folders, none included. A slash at the end matches folders alone.
// Within a name *, ?, [a-z] and \ are as in path.Match.
type Selection struct {
	Paths   []string `json:"paths,omitempty"`
	Include []string `json:"include,omitempty"`
	Exclude []string `json:"exclude,omitempty"`
}

const (
	maxSelection = 2048 // bytes of its key: it travels with each claim
	maxStars     = 3    // ** of a pattern
)

// Empty reports whether it selects everything.
func (s Selection) Empty() bool { return len(s.Paths)+len(s.Include)+len(s.Exclude) == 0 }

// Key is the same for selections that say the same; "" selects everything. Its
// error says what is wrong with a pattern.
func (s Selection) Key() (string, error) {
	if s.Empty() {
		return "", nil
	}
	bad := func(what, why string) (string, error) {
		return "", stoker.Errorf(stoker.KindInvalid, "selection", EscapePath(what), "%s", why)
	}
	var k Selection
	for _, p := range s.Paths {
		p = strings.Trim(p, "/")
		if p == "" || slices.ContainsFunc(strings.Split(p, "/"), func(c string) bool { return c == "" || c == "." || c == ".." }) {
			return bad(p, "is no path below the dataset's root: write train or train/n01440764")
		}
		k.Paths = append(k.Paths, p)
	}
	for i, list := range [][]string{s.Include, s.Exclude} {
		for _, p := range list {
			if strings.Trim(p, "/") == "" {
				return bad(p, "is an empty pattern")
			}
			for _, c := range strings.Split(strings.Trim(p, "/"), "/") {
				if _, err := path.Match(c, "x"); err != nil || c == "" {
					return bad(p, "is no pattern: write *.jpg, train/**/*.tmp or [0-9]*")
				}
			}
			if strings.Count(p, "**") > maxStars {
				return bad(p, "has too many **")
			}
			if i == 0 {
				k.Include = append(k.Include, p)
			} else {
				k.Exclude = append(k.Exclude, p)
			}
		}
	}
	for _, list := range []*[]string{&k.Paths, &k.Include, &k.Exclude} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	b, err := json.Marshal(k)
	if err != nil || len(b) > maxSelection {
		return bad("", "is too long: freeze a dataset of what you want, or take fewer patterns")
	}
	return string(b), nil
}

// ParseSelection reads a key.
func ParseSelection(key string) (s Selection, err error) {
	if key == "" {
		return s, nil
	}
	if err := json.Unmarshal([]byte(key), &s); err != nil {
		return s, stoker.Errorf(stoker.KindCorrupt, "selection", "", "%w", err)
	}
	return s, nil
}

// glob is a pattern that was taken apart.
type glob struct {
	names   []string
	rooted  bool // it begins at the root
	folders bool // it matches folders alone
}

// Selector tells which paths a selection has. It may be used from any goroutine.
type Selector struct {
	paths            []string
	include, exclude []glob
}

// Selector takes its patterns apart.
func (s Selection) Selector() *Selector {
	globs := func(patterns []string) (out []glob) {
		for _, p := range patterns {
			bare := strings.Trim(p, "/")
			out = append(out, glob{names: strings.Split(bare, "/"), rooted: strings.Contains(strings.TrimSuffix(p, "/"), "/"), folders: strings.HasSuffix(p, "/")})
		}
		return out
	}
	return &Selector{s.Paths, globs(s.Include), globs(s.Exclude)}
}

// Has reports whether an object is selected, by its path without a slash at its
// beginning. Nil selects everything.
func (s *Selector) Has(object string) bool {
	if s == nil {
		return true
	}
	below := func(p string) bool {
		return strings.HasPrefix(object, p) && (len(object) == len(p) || object[len(p)] == '/')
	}
	if len(s.paths) > 0 && !slices.ContainsFunc(s.paths, below) {
		return false
	}
	if len(s.include)+len(s.exclude) == 0 {
		return true
	}
	names := strings.Split(object, "/")
	matches := func(g glob) bool { return g.matches(names) }
	return (len(s.include) == 0 || slices.ContainsFunc(s.include, matches)) && !slices.ContainsFunc(s.exclude, matches)
}

// matches reports whether it matches the path, or a folder above it.
func (g glob) matches(names []string) bool {
	for n := 1; n <= len(names); n++ {
		if n == len(names) && g.folders {
			return false
		}
		if g.rooted && matchAll(g.names, names[:n]) || !g.rooted && matchName(g.names[0], names[n-1]) {
			return true
		}
	}
	return false
}

func matchName(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return ok && err == nil
}

func matchAll(patterns, names []string) bool {
	for len(patterns) > 0 && patterns[0] != "**" {
		if len(names) == 0 || !matchName(patterns[0], names[0]) {
			return false
		}
		patterns, names = patterns[1:], names[1:]
	}
	if len(patterns) == 0 {
		return len(names) == 0
	}
	for n := range len(names) + 1 {
		if matchAll(patterns[1:], names[n:]) {
			return true
		}
	}
	return false
}
