package posixufs

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/ufs"
)

// DefaultPage is how many entries a page has at most, as in S3.
const DefaultPage = 1000

// windowNames bounds the names of one folder that are in memory, twice so many
// while it is read: of a larger one the least are taken, and it is read again
// for the next.
const windowNames = 64 << 10

// List implements ufs.FS. Keys come in the order of their bytes, which is not
// that of a walk: "a-b" is before "a/b", and that before "a0". The delimiter is
// "/" or none. Empty folders are objects whose key ends in "/". What vanishes
// meanwhile is left out; a folder that may not be read is an error, since a
// listing is whole or it is none.
func (f *FS) List(ctx context.Context, o ufs.ListOptions) (ufs.Page, error) {
	if o.Delimiter != "" && o.Delimiter != "/" {
		return ufs.Page{}, stoker.Errorf(stoker.KindInvalid, "file.list", o.Prefix, "delimiter %q: there are only folders", o.Delimiter)
	}
	rel, ok := strings.CutPrefix(o.Prefix, f.prefix)
	if dir := rel[:strings.LastIndexByte(rel, '/')+1]; ok && dir != "" {
		_, err := f.path("file.list", f.prefix+strings.TrimSuffix(dir, "/"))
		ok = err == nil
	}
	if !ok {
		return ufs.Page{}, stoker.Errorf(stoker.KindInvalid, "file.list", o.Prefix, "lies outside of %s", f.folder)
	}
	after, s := o.StartAfter, (*scan)(nil)
	if o.Token != "" {
		id, key, ok := strings.Cut(o.Token, ":")
		if !ok {
			return ufs.Page{}, stoker.Errorf(stoker.KindInvalid, "file.list", o.Prefix, "%q is no token of a page", o.Token)
		}
		after, s = key, f.scans.take(id, key)
	}
	if s == nil {
		s = newScan(f, o.Prefix, o.Delimiter, after)
	}
	limit := DefaultPage
	if o.MaxKeys > 0 {
		limit = min(limit, o.MaxKeys)
	}
	page, err := s.page(ctx, limit)
	if err != nil {
		return ufs.Page{}, err
	}
	if len(s.levels) > 0 {
		page.Next = f.scans.keep(s) + ":" + s.last
	}
	return page, nil
}

// entry is a name in a folder; that of a folder ends in "/".
type entry struct {
	name string
	odd  string // what it is, if it can be no file
}

func (e entry) dir() bool { return strings.HasSuffix(e.name, "/") }

func byName(a, b entry) int { return cmp.Compare(a.name, b.name) }

// level is a folder that is being listed.
type level struct {
	key    string  // of the folder: what the keys of its entries begin with
	filter string  // what its names begin with
	from   string  // where the listing starts after, below key; "" = at the beginning
	bound  bool    // the listing starts after the folder's own key
	after  string  // names up to it are done
	window []entry // the next names
	whole  bool    // nothing follows the window
	filled bool
	held   int // names in memory
}

// scan is a listing between two pages. One goroutine at a time uses it.
type scan struct {
	f         *FS
	prefix    string
	delimiter string
	levels    []level // the folders on the way to the next key
	last      string  // entry handed out
	id        string

	at    *os.File // a folder that is open, nil between pages
	atKey string
}

// newScan begins a listing after a key.
func newScan(f *FS, prefix, delimiter, after string) *scan {
	dir := prefix[:max(strings.LastIndexByte(prefix, '/')+1, len(f.prefix))]
	s := &scan{f: f, prefix: prefix, delimiter: delimiter}
	l := level{key: dir, filter: prefix[len(dir):]}
	if rest, inside := strings.CutPrefix(after, dir); inside {
		l.from, l.bound = rest, true
	} else if after > dir {
		return s // all keys are before it
	}
	l.after = l.from
	s.levels = append(s.levels, l)
	return s
}

// page takes the next entries. Afterwards no level is left if nothing follows.
func (s *scan) page(ctx context.Context, limit int) (p ufs.Page, err error) {
	defer s.shut()
	for len(s.levels) > 0 {
		if err := ctx.Err(); err != nil {
			return p, err
		}
		l := &s.levels[len(s.levels)-1]
		full := len(p.Objects)+len(p.Prefixes) == limit
		switch {
		case len(l.window) == 0 && l.whole:
			s.levels = s.levels[:len(s.levels)-1]
		case full:
			return p, nil
		case len(l.window) == 0:
			if err := s.fill(ctx, l, &p); err != nil {
				return p, err
			}
		default:
			if err := s.next(l, &p); err != nil {
				return p, err
			}
		}
	}
	return p, nil
}

// next hands out the first name of a window, or goes into that folder.
func (s *scan) next(l *level, p *ufs.Page) error {
	e := l.window[0]
	l.window[0] = entry{}
	l.window, l.after = l.window[1:], e.name
	key := l.key + e.name
	switch {
	case e.odd != "":
		p.Objects = append(p.Objects, ufs.Object{Key: key, Unmountable: e.odd})
	case e.dir() && s.delimiter == "":
		sub := level{key: key}
		if rest, within := strings.CutPrefix(l.from, e.name); within { // the listing begins in it
			sub.from, sub.after, sub.bound = rest, rest, true
		}
		s.levels = append(s.levels, sub)
		return nil
	case e.dir():
		p.Prefixes = append(p.Prefixes, key)
	default:
		o, err := s.row(l, e.name)
		if err != nil || o.Key == "" {
			return err
		}
		p.Objects = append(p.Objects, o)
	}
	s.last = key
	return nil
}

// row looks at a file; one that has vanished has no key.
func (s *scan) row(l *level, name string) (ufs.Object, error) {
	key := l.key + name
	if s.at == nil || s.atKey != l.key {
		s.shut()
		fd, err := s.f.open(s.rel(l), unix.O_RDONLY|unix.O_DIRECTORY)
		if gone(err) {
			return ufs.Object{}, nil
		} else if err != nil {
			return ufs.Object{}, s.f.failed("file.list", l.key, err)
		}
		s.at, s.atKey = os.NewFile(uintptr(fd), l.key), l.key
	}
	fd := int(s.at.Fd())
	i, err := stat(fd, name, false)
	var o ufs.Object
	if err == nil && i.is(unix.S_IFDIR) {
		return o, nil // it was a file a moment ago
	}
	if err == nil {
		o, err = object(key, fd, name, i)
	}
	if gone(err) {
		return ufs.Object{}, nil
	} else if err != nil {
		return ufs.Object{}, s.f.failed("file.list", key, err)
	}
	return o, nil
}

// gone: removed, or replaced by something else, since its name was read.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

func (s *scan) rel(l *level) string { return strings.TrimPrefix(l.key, s.f.prefix) }

// shut closes the folder that is open.
func (s *scan) shut() {
	if s.at != nil {
		_ = s.at.Close() // it was only read
		s.at = nil
	}
}

// fill reads a folder for the next names of its level. An empty folder is an
// entry of its own.
func (s *scan) fill(ctx context.Context, l *level, p *ufs.Page) error {
	first := !l.filled
	l.filled = true
	s.shut()
	fd, err := s.f.open(s.rel(l), unix.O_RDONLY|unix.O_DIRECTORY)
	switch {
	case gone(err) && s.rel(l) == "":
		return s.f.there()
	case gone(err):
		l.whole = true
		return nil
	case errors.Is(err, unix.ENAMETOOLONG):
		l.whole = true
		p.Objects, s.last = append(p.Objects, ufs.Object{Key: l.key, Unmountable: "a folder whose path is longer than 4095 bytes"}), l.key
		return nil
	case err != nil:
		return s.f.failed("file.list", l.key, err)
	}
	// The name is where os asks for the types that the file system did not tell.
	s.at, s.atKey = os.NewFile(uintptr(fd), filepath.Join(s.f.folder, s.rel(l))), l.key
	mountable := false
	if mountable, err = s.least(ctx, l, first); err != nil {
		return err
	}
	if first && !mountable && l.filter == "" && !l.bound && s.rel(l) != "" {
		p.Objects, s.last = append(p.Objects, ufs.Object{Key: l.key}), l.key
	}
	return nil
}

// least takes the least names after those that are done, and says whether the
// folder has any entry that can be mounted.
func (s *scan) least(ctx context.Context, l *level, first bool) (mountable bool, err error) {
	names := make([]entry, 0, 64)
	cut := false
	shorten := func() {
		slices.SortFunc(names, byName)
		names = slices.CompactFunc(names, func(a, b entry) bool { return a.name == b.name }) // a folder that changes may tell one twice
		if len(names) > s.f.window {
			clear(names[s.f.window:])
			names, cut = names[:s.f.window], true
		}
	}
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		found, err := s.at.ReadDir(min(1024, s.f.window))
		for _, d := range found {
			e := entryOf(d)
			mountable = mountable || e.odd == ""
			if strings.HasPrefix(e.name, l.filter) && s.wanted(l, e, first) {
				names = append(names, e)
			}
		}
		if len(names) >= 2*s.f.window {
			shorten()
		}
		if errors.Is(err, io.EOF) || gone(err) {
			break
		} else if err != nil {
			return false, s.f.failed("file.list", l.key, err)
		}
	}
	shorten()
	l.window, l.whole, l.held = names, !cut, len(names)
	return mountable, nil
}

// wanted reports whether an entry comes after what is done; so does a folder
// that the listing starts in the middle of.
func (s *scan) wanted(l *level, e entry, first bool) bool {
	if e.name > l.after {
		return true
	}
	return first && e.dir() && strings.HasPrefix(l.from, e.name) && (s.delimiter == "" || l.from != e.name)
}

func entryOf(d fs.DirEntry) entry {
	switch t := d.Type(); {
	case t.IsDir():
		return entry{name: d.Name() + "/"}
	case t.IsRegular(), t&fs.ModeSymlink != 0:
		return entry{name: d.Name()}
	case t&fs.ModeNamedPipe != 0:
		return entry{d.Name(), kindName(unix.S_IFIFO)}
	case t&fs.ModeSocket != 0:
		return entry{d.Name(), kindName(unix.S_IFSOCK)}
	case t&fs.ModeDevice != 0:
		return entry{d.Name(), kindName(unix.S_IFCHR)}
	}
	return entry{d.Name(), kindName(0)}
}

func formatID(n uint64) string { return strconv.FormatUint(n, 36) }
