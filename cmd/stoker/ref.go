package main

import (
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// maxGenerationDigits keeps generations within an int32.
const maxGenerationDigits = 9

// parseRef reads NAME|URI[@GEN][=DIR]. Names have no '=', so the first one
// begins DIR, which is absolute. In a URI, which may have some, the last '='
// before an absolute path, ./ or ../ does; '@' counts only before digits that
// end the reference. A URI that ends like @12 itself is written with a slash
// behind it.
func parseRef(s string) (api.DatasetRef, error) {
	bad := func(format string, args ...any) (api.DatasetRef, error) {
		return api.DatasetRef{}, stoker.Errorf(stoker.KindInvalid, "dataset", printable(s), format, args...)
	}
	var ref api.DatasetRef
	rest := s
	if i := dirAt(s); i >= 0 {
		dir := s[i+1:]
		if dir == "" {
			return bad("no folder follows the '=': write NAME=/absolute/folder")
		}
		if !filepath.IsAbs(dir) {
			return bad("%q is no absolute folder: write NAME=/absolute/folder", dir)
		}
		ref.Dir, rest = filepath.Clean(dir), s[:i]
	}
	ref.Name = rest
	if i := strings.LastIndexByte(rest, '@'); i >= 0 && digits(rest[i+1:]) {
		n, err := strconv.Atoi(rest[i+1:])
		if err != nil || n == 0 || len(rest)-i-1 > maxGenerationDigits {
			return bad("%q is no generation: they count from 1", rest[i+1:])
		}
		ref.Name, ref.Generation = rest[:i], n
	}
	switch {
	case strings.ContainsRune(s, 0):
		return bad("holds a NUL byte")
	case !isURI(ref.Name) && !isName(ref.Name):
		return bad("is no dataset name (%s): write NAME, NAME@GENERATION, s3://bucket/prefix or file:///folder", aName)
	}
	return ref, nil
}

func isURI(s string) bool { return strings.Contains(s, "://") }

// aName is what a dataset's name is, as the registry has it.
const aName = "1 to 63 of a-z 0-9 . _ -, a letter or digit first"

var nameOf = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

func isName(s string) bool { return nameOf.MatchString(s) }

// dirAt returns where the '=' before DIR is, or -1.
func dirAt(s string) int {
	first := strings.IndexByte(s, '=')
	if scheme := strings.Index(s, "://"); scheme < 0 || first >= 0 && first < scheme {
		return first
	}
	for i := len(s) - 1; i >= first && i >= 0; i-- {
		if s[i] != '=' {
			continue
		}
		dir := s[i+1:]
		if strings.HasPrefix(dir, "/") || strings.HasPrefix(dir, "./") || strings.HasPrefix(dir, "../") || dir == "." {
			return i
		}
	}
	return -1
}

func digits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// datasetArg is parseRef where no folder may follow.
func datasetArg(s string) (api.DatasetRef, error) {
	ref, err := parseRef(s)
	if err == nil && ref.Dir != "" {
		err = stoker.Errorf(stoker.KindInvalid, "dataset", printable(s), "no =DIR here: nothing is mounted by this command")
	}
	return ref, err
}

// refName is the name of a reference in the controller's routes and messages.
func refName(r api.DatasetRef) string {
	if r.Generation == 0 {
		return r.Name
	}
	return r.Name + "@" + strconv.Itoa(r.Generation)
}

// parseRoot reads URI or FOLDER=URI of dataset add.
func parseRoot(s string) (root api.AddRoot, err error) {
	root.URI = s
	scheme := strings.Index(s, "://")
	if i := strings.IndexByte(s, '='); i >= 0 && i < scheme {
		root.Folder, root.URI = s[:i], s[i+1:]
		if f := root.Folder; f == "" || strings.HasPrefix(f, "/") || filepath.Clean(f) != f || f == "." || f == ".." || strings.HasPrefix(f, "../") {
			return root, stoker.Errorf(stoker.KindInvalid, "dataset add", printable(s), "%q is no folder of a dataset: write FOLDER=URI with a plain relative path", f)
		}
	}
	if scheme < 1 {
		return root, stoker.Errorf(stoker.KindInvalid, "dataset add", printable(s), "is no URI: write s3://bucket/prefix or file:///folder")
	}
	return root, nil
}

// jobIDPattern is what a job id may be: it stands in URLs, environments and
// the first line on stderr.
const jobIDPattern = `^[A-Za-z0-9][A-Za-z0-9._:@+=-]{0,127}$`

func checkJobID(id string) error {
	if ok, err := regexp.MatchString(jobIDPattern, id); err != nil || !ok {
		return stoker.Errorf(stoker.KindInvalid, "job", printable(id), "is no job id: use up to 128 letters, digits and . _ : @ + = -, a letter or digit first")
	}
	return nil
}

// folders names the sub-folder of each dataset where several are mounted: its
// name, of a URI the last part.
func folders(refs []api.DatasetRef) ([]string, error) {
	names := make([]string, len(refs))
	seen := map[string]string{}
	for i, r := range refs {
		name := r.Name
		if j := strings.Index(name, "://"); j >= 0 {
			name = strings.TrimRight(name[j+3:], "/")
		}
		name = name[strings.LastIndexByte(name, '/')+1:]
		if name == "" || name == "." || name == ".." {
			return nil, stoker.Errorf(stoker.KindInvalid, "dataset", printable(r.Name), "gives no folder name: say where with =DIR")
		}
		if other, twice := seen[name]; twice {
			return nil, stoker.Errorf(stoker.KindInvalid, "dataset", printable(r.Name), "and %s would both be mounted as %s: submit them apart", other, name)
		}
		seen[name], names[i] = refName(r), name
	}
	return names, nil
}
