package manifest

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"strings"

	"stoker.dev/ufs"
)

// Records of a build. Their keys are paths, so made that byte order is the
// order of rows: the depth as u16, big-endian, then the path with 0 for each
// slash, which no path holds. Their values begin with what they are, so that
// a directory comes before a file of its path.
const (
	recordDir = iota
	recordObject
)

// Flags of an object's record, beside those of rows.
const (
	recordLink = 1 << (iota + 4)
	recordKey  // the key is not root prefix + path, and stands in the record
)

// Places in an object's record: kind, root (big-endian: roots in order), flags, bytes, time.
const (
	recordFixed = 1 + 2 + 1 + 8 + 8
	atRoot      = 1
	atFlags     = 3
	atBytes     = 4
	atTime      = 12
)

// appendPath appends the key of a path's record.
func appendPath(dst []byte, path string) []byte {
	at := len(dst)
	dst = append(append(dst, 0, 0), path...)
	depth := uint16(1)
	for i := at + 2; i < len(dst); i++ {
		if dst[i] == '/' {
			dst[i] = 0
			depth++
		}
	}
	binary.BigEndian.PutUint16(dst[at:], depth)
	return dst
}

// splitPath returns parent and name of a record's key, slashes as 0.
func splitPath(key []byte) (parent, name []byte) {
	path := key[2:]
	if at := bytes.LastIndexByte(path, 0); at >= 0 {
		return path[:at], path[at+1:]
	}
	return nil, path
}

// appendSlashed appends a record's path with its slashes.
func appendSlashed(dst, path []byte) []byte {
	at := len(dst)
	dst = append(dst, path...)
	for i := at; i < len(dst); i++ {
		if dst[i] == 0 {
			dst[i] = '/'
		}
	}
	return dst
}

// appendListed appends the value of an object's record. derived says that its
// key is its root's prefix and its path below the root's folder.
func appendListed(dst []byte, root uint16, o *ufs.Object, derived bool) []byte {
	at := len(dst)
	dst = append(dst, make([]byte, recordFixed)...)
	b := dst[at:]
	b[0] = recordObject
	binary.BigEndian.PutUint16(b[atRoot:], root)
	binary.LittleEndian.PutUint64(b[atBytes:], uint64(o.Version.Bytes))
	flags := byte(0)
	if !o.Version.ModTime.IsZero() {
		flags |= flagTime
		binary.LittleEndian.PutUint64(b[atTime:], uint64(o.Version.ModTime.UnixNano()))
	}
	if o.Exec {
		flags |= flagExec
	}
	switch plain, ok := plainETag(o.Version.Tag); {
	case ok:
		flags |= flagETag
		dst = append(dst, plain[:]...)
	case o.Version.Tag != "":
		flags |= flagTag
		dst = appendPart(dst, o.Version.Tag)
	}
	if o.Link != "" {
		flags |= recordLink
		dst = appendPart(dst, o.Link)
	}
	if !derived {
		flags |= recordKey
		dst = appendPart(dst, o.Key)
	}
	dst[at+atFlags] = flags
	return dst
}

// plainETag returns the bytes of a quoted ETag of 32 lower-case hex digits.
func plainETag(tag string) (plain [16]byte, ok bool) {
	if len(tag) != 34 || tag[0] != '"' || tag[33] != '"' {
		return plain, false
	}
	if _, err := hex.Decode(plain[:], []byte(tag[1:33])); err != nil || strings.ToLower(tag) != tag {
		return plain, false
	}
	return plain, true
}

func appendPart(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// object is an object's record, decoded: what it needs in its row and shard.
// Its slices are reused for the next one.
type object struct {
	path  []byte // below the mount, with slashes
	key   []byte
	root  uint16
	exec  bool
	bytes int64
	timed bool   // time is set
	time  int64  // unix ns
	etag  []byte // 16 bytes, if the tag is a plain ETag
	tag   []byte // in full, whatever it is
	link  []byte // "" = no link
}

// decode reads a record that appendListed made. prefixes are the roots' key
// prefixes; folders where they are joined.
func (o *object) decode(key, value []byte, roots []rootPlace) {
	flags := value[atFlags]
	o.path = appendSlashed(o.path[:0], key[2:])
	o.root = binary.BigEndian.Uint16(value[atRoot:])
	o.bytes = int64(binary.LittleEndian.Uint64(value[atBytes:]))
	o.exec, o.timed = flags&flagExec != 0, flags&flagTime != 0
	o.time = int64(binary.LittleEndian.Uint64(value[atTime:]))
	o.etag, o.tag, o.link = nil, o.tag[:0], o.link[:0]
	rest := value[recordFixed:]
	switch {
	case flags&flagETag != 0:
		o.etag, rest = rest[:16], rest[16:]
		o.tag = append(hex.AppendEncode(append(o.tag, '"'), o.etag), '"')
	case flags&flagTag != 0:
		o.tag, rest = cutPart(o.tag, rest)
	}
	if flags&recordLink != 0 {
		o.link, rest = cutPart(o.link, rest)
	}
	if flags&recordKey != 0 {
		o.key, _ = cutPart(o.key[:0], rest)
		return
	}
	r := &roots[o.root]
	o.key = append(append(o.key[:0], r.prefix...), o.path[r.skip:]...)
}

func cutPart(dst, b []byte) (s, rest []byte) {
	n, at := binary.Uvarint(b)
	return append(dst, b[at:at+int(n)]...), b[at+int(n):]
}

// rootPlace is how a root's keys become paths.
type rootPlace struct {
	uri, folder, prefix string
	skip                int // bytes of a path before what stands in the key
}

func rootPlaces(roots []Root) []rootPlace {
	out := make([]rootPlace, len(roots))
	for i, r := range roots {
		out[i] = rootPlace{uri: r.URI, folder: r.Folder, prefix: prefixOf(r.URI)}
		if r.Folder != "" {
			out[i].skip = len(r.Folder) + 1
		}
	}
	return out
}

// derives reports whether the key of a path is root prefix + path.
func (r *rootPlace) derives(key, path string) bool {
	return len(path) >= r.skip && len(key) == len(r.prefix)+len(path)-r.skip &&
		key[:len(r.prefix)] == r.prefix && key[len(r.prefix):] == path[r.skip:]
}
