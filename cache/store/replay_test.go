package store

import (
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

// sector is what a disk writes whole or not at all.
const sector = 512

// recorder keeps what was done to a folder, in order. Files are known by the
// number of their creation, since the kernel gives inode numbers again.
type recorder struct {
	t     testing.TB
	log   []entry
	files map[uint64]int // by inode
	made  int
}

// entry is a change, or, with note, something that the test did.
type entry struct {
	change
	file int
	note *note
}

func newRecorder(t testing.TB) *recorder {
	return &recorder{t: t, files: map[uint64]int{}}
}

func (r *recorder) watch(c change) {
	e := entry{change: c}
	if c.file != nil {
		fi, err := c.file.Stat()
		if err != nil {
			r.t.Error(err)
			return
		}
		inode := fi.Sys().(*syscall.Stat_t).Ino
		if c.op == "create" {
			r.made++
			r.files[inode] = r.made
		}
		e.file = r.files[inode]
		if e.file == 0 {
			r.t.Errorf("%s of a file that was not created", c.op)
		}
	}
	e.body = slices.Clone(c.body)
	r.log = append(r.log, e)
}

// adopt begins the log with a folder that is there, all of it synced.
func (r *recorder) adopt(dir string) {
	r.t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			r.watch(change{op: "mkdir", path: path})
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		body, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		r.watch(change{op: "create", path: path, file: f})
		r.watch(change{op: "truncate", file: f, n: int64(len(body))})
		r.watch(change{op: "writeAt", file: f, body: body})
		r.watch(change{op: "chmod", file: f, n: int64(fi.Mode().Perm())})
		r.watch(change{op: "sync", file: f})
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, e := range slices.Clone(r.log) {
		if e.op == "mkdir" {
			r.watch(change{op: "syncDir", path: e.path})
		}
	}
	r.watch(change{op: "syncDir", path: filepath.Dir(dir)})
}

// fate says what becomes of what was not synced: it is kept with one of these
// chances, drawn once for each power loss.
var fates = []float64{0, 0.05, 0.5, 0.95, 1}

// image is a disk after power loss.
type image struct {
	dirs  map[string]bool
	names map[string]int // files by path
	files map[int]*blob
}

type blob struct {
	body []byte
	mode fs.FileMode
}

// powerLoss makes the disk of a log: what was synced, and some of the rest,
// in the worst way that a file system may choose. Names and data are
// independent of each other; writes tear at sectors; folders are no journal.
func powerLoss(log []entry, r *rand.Rand) *image {
	files := fates[r.IntN(len(fates))]
	names := fates[r.IntN(len(fates))]
	im := &image{dirs: map[string]bool{}, names: map[string]int{}, files: map[int]*blob{}}
	for i, e := range log {
		switch rest := log[i+1:]; e.op {
		case "truncate", "writeAt", "chmod":
			synced := slices.ContainsFunc(rest, func(l entry) bool { return l.op == "sync" && l.file == e.file })
			im.changeFile(e, func() bool { return synced || r.Float64() < files })
		case "mkdir", "create", "rename", "remove", "removeAll":
			parent := filepath.Dir(e.path)
			if slices.ContainsFunc(rest, func(l entry) bool { return l.op == "syncDir" && l.path == parent }) || r.Float64() < names {
				im.changeName(e)
			}
		}
	}
	return im
}

func (im *image) changeFile(e entry, keep func() bool) {
	f := im.files[e.file]
	if f == nil {
		f = &blob{mode: 0o600}
		im.files[e.file] = f
	}
	switch e.op {
	case "truncate":
		if keep() {
			f.body = append(f.body, make([]byte, max(0, int(e.n)-len(f.body)))...)[:e.n]
		}
	case "chmod":
		if keep() {
			f.mode = fs.FileMode(e.n)
		}
	case "writeAt":
		for from := e.n; from < e.n+int64(len(e.body)); {
			to := min((from/sector+1)*sector, e.n+int64(len(e.body)))
			if keep() {
				f.body = append(f.body, make([]byte, max(0, int(to)-len(f.body)))...)
				copy(f.body[from:to], e.body[from-e.n:])
			}
			from = to
		}
	}
}

func (im *image) changeName(e entry) {
	switch e.op {
	case "mkdir":
		im.dirs[e.path] = true
	case "create":
		im.names[e.path] = e.file
	case "rename":
		if n, ok := im.names[e.path]; ok {
			delete(im.names, e.path)
			im.names[e.to] = n
		}
	case "remove", "removeAll":
		delete(im.names, e.path)
		delete(im.dirs, e.path)
		maps.DeleteFunc(im.names, func(p string, _ int) bool { return inside(e.path, p) })
		maps.DeleteFunc(im.dirs, func(p string, _ bool) bool { return inside(e.path, p) })
	}
}

// write makes the folder of the image, moved from one path to another.
func (im *image) write(t testing.TB, from, to string) {
	t.Helper()
	there := func(p string) bool { // with all folders above it
		for ; p != from; p = filepath.Dir(p) {
			if !im.dirs[p] {
				return false
			}
		}
		return im.dirs[from]
	}
	for _, d := range slices.Sorted(maps.Keys(im.dirs)) {
		if there(d) {
			if err := os.Mkdir(to+d[len(from):], 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	for path, n := range im.names {
		if !there(filepath.Dir(path)) {
			continue
		}
		f := im.files[n]
		if f == nil {
			f = &blob{mode: 0o600}
		}
		if err := os.WriteFile(to+path[len(from):], f.body, f.mode); err != nil {
			t.Fatal(err)
		}
	}
}
