// Package config reads the flat config files of stoker's programs: one YAML
// document of keys with one value each. Its errors name file and line. It
// keeps nothing and may be used from any goroutine.
package config

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// Value is what a file says of one key, as a flag would have it; a key without
// a value is an empty string.
type Value struct {
	Text  string
	Where string // file and line, for errors
}

// Read reads a file. One that is not there is an error that os.ErrNotExist
// matches. A key that stands twice, a list and a table are errors.
func Read(path string) (map[string]Value, error) {
	body, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var raw map[string]any
	if err := yaml.UnmarshalStrict(body, &raw); err != nil {
		return nil, fmt.Errorf("%s: %w", place(path, brokenLine(err)), plainly(err))
	}
	out := map[string]Value{}
	for k, v := range raw {
		where := place(path, line(body, k))
		text, err := plain(v)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", where, k, err)
		}
		out[k] = Value{text, where}
	}
	return out, nil
}

// place is file:line; line 0 is not known.
func place(path string, line int) string {
	if line == 0 {
		return path
	}
	return path + ":" + strconv.Itoa(line)
}

// line finds where a key stands: at the beginning of a line, as the file is
// flat, or nowhere that can be told.
func line(body []byte, key string) int {
	n := 0
	for l := range strings.Lines(string(body)) {
		n++
		for _, as := range []string{key, `"` + key + `"`, "'" + key + "'"} {
			if rest, ok := strings.CutPrefix(l, as); ok && strings.HasPrefix(strings.TrimLeft(rest, " \t"), ":") {
				return n
			}
		}
	}
	return 0
}

var saysLine = regexp.MustCompile(`line (\d+): `)

func brokenLine(err error) int {
	m := saysLine.FindStringSubmatch(err.Error())
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(m[1]) // digits alone
	return n
}

// plainly is an error of the YAML library without what Value.Where says and
// without its own steps.
func plainly(err error) error {
	s := strings.TrimPrefix(strings.TrimPrefix(err.Error(), "error converting YAML to JSON: "), "yaml: ")
	s = strings.ReplaceAll(s, "unmarshal errors:\n", "")
	s = strings.Join(strings.Fields(saysLine.ReplaceAllString(s, "")), " ")
	if strings.HasPrefix(s, "error unmarshaling JSON") {
		s = "want lines of `key: value`"
	}
	return errors.New(s)
}

// plain writes a value as a flag would have it.
func plain(v any) (string, error) {
	switch v := v.(type) {
	case nil:
		return "", nil
	case string:
		return v, nil
	case bool:
		return strconv.FormatBool(v), nil
	case float64: // YAML's numbers come as JSON's
		return strconv.FormatFloat(v, 'f', -1, 64), nil
	}
	return "", errors.New("want one value, not a list or a table")
}
