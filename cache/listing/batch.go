package listing

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io"
	"time"

	"stoker.dev/ufs"
)

// batch is one link of a journal: pages of objects, and what is left to list
// after them. On disk: magic, length of the head, head as JSON, the pages
// deflated, and the CRC32C of all that.
type batch struct {
	batchHead
	pages []byte
}

type batchHead struct {
	Options []byte // hash of what is listed
	Written time.Time
	Rest    []restOf
}

// restOf is a range that is not listed yet. Keys may be any bytes.
type restOf struct {
	Source       int `json:"Root"`
	After, Until []byte
}

const (
	batchMagic = "stokerL1"
	maxSources = 1<<16 - 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (b *batch) encode() ([]byte, error) {
	head, err := json.Marshal(b.batchHead)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.WriteString(batchMagic)
	out.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(head))))
	out.Write(head)
	z, err := flate.NewWriter(&out, flate.BestSpeed)
	if err == nil {
		_, err = z.Write(b.pages)
	}
	if err == nil {
		err = z.Close()
	}
	return binary.LittleEndian.AppendUint32(out.Bytes(), crc32.Checksum(out.Bytes(), castagnoli)), err
}

var errBatch = errors.New("is damaged")

// decodeBatch reads a batch of a listing of so many sources.
func decodeBatch(body []byte, sources int) (*batch, error) {
	const fixed = len(batchMagic) + 4
	if len(body) < fixed+4 || string(body[:len(batchMagic)]) != batchMagic {
		return nil, errBatch
	}
	end := len(body) - 4
	head := int64(binary.LittleEndian.Uint32(body[len(batchMagic):]))
	if binary.LittleEndian.Uint32(body[end:]) != crc32.Checksum(body[:end], castagnoli) || int64(fixed)+head > int64(end) {
		return nil, errBatch
	}
	b := new(batch)
	if err := json.Unmarshal(body[fixed:][:head], &b.batchHead); err != nil {
		return nil, err
	}
	for _, r := range b.Rest {
		if r.Source < 0 || r.Source >= sources {
			return nil, errBatch
		}
	}
	var err error
	if b.pages, err = io.ReadAll(flate.NewReader(bytes.NewReader(body[int64(fixed)+head : end]))); err != nil {
		return nil, err
	}
	return b, b.check(sources)
}

// check reads all pages once, so that nothing of a damaged batch is handed on.
func (b *batch) check(sources int) error {
	return b.each(func(source int, _ []ufs.Object) error {
		if source >= sources {
			return errBatch
		}
		return nil
	})
}

// each hands the pages on, one by one.
func (b *batch) each(emit func(source int, objects []ufs.Object) error) error {
	for r := (reader{b: b.pages}); len(r.b) > 0; {
		source, n := r.uint(), r.uint()
		if source > maxSources || n > uint64(len(r.b)) { // an object takes more than a byte
			return errBatch
		}
		objects := make([]ufs.Object, 0, n)
		key := ""
		for range n {
			o := r.object(key)
			key = o.Key
			objects = append(objects, o)
		}
		if r.bad {
			return errBatch
		}
		if n > 0 {
			if err := emit(int(source), objects); err != nil {
				return err
			}
		}
	}
	return nil
}

// What is said of an object, besides key and size.
const (
	hasTime = 1 << iota
	hasETag // 32 hex digits in quotes: 16 bytes
	hasTag
	hasExec
	hasLink
	isUnmountable
)

// appendPage writes a page: source, number of objects, and each as the bytes
// that its key shares with the one before, the rest of the key, flags, size,
// and what the flags say.
func appendPage(b []byte, source int, objects []ufs.Object) []byte {
	b = binary.AppendUvarint(b, uint64(source))
	b = binary.AppendUvarint(b, uint64(len(objects)))
	last := ""
	for i := range objects {
		o := &objects[i]
		same := common(last, o.Key)
		b = binary.AppendUvarint(b, uint64(same))
		b = appendString(b, o.Key[same:])
		b = appendObject(b, o)
		last = o.Key
	}
	return b
}

func appendObject(b []byte, o *ufs.Object) []byte {
	at, flags := len(b), byte(0)
	b = binary.AppendVarint(append(b, 0), o.Version.Bytes)
	if t := o.Version.ModTime; !t.IsZero() {
		flags |= hasTime
		b = binary.AppendVarint(b, t.Unix())
		b = binary.AppendUvarint(b, uint64(t.Nanosecond()))
	}
	if etag, ok := hexTag(o.Version.Tag); ok {
		flags |= hasETag
		b = append(b, etag[:]...)
	} else if o.Version.Tag != "" {
		flags |= hasTag
		b = appendString(b, o.Version.Tag)
	}
	if o.Exec {
		flags |= hasExec
	}
	if o.Link != "" {
		flags |= hasLink
		b = appendString(b, o.Link)
	}
	if o.Unmountable != "" {
		flags |= isUnmountable
		b = appendString(b, o.Unmountable)
	}
	b[at] = flags
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// hexTag returns the bytes of an ETag of 32 small hex digits.
func hexTag(tag string) (etag [16]byte, ok bool) {
	if len(tag) != 34 || tag[0] != '"' || tag[33] != '"' {
		return etag, false
	}
	for i := 1; i < 33; i++ {
		if c := tag[i]; c > 'f' || c > '9' && c < 'a' || c < '0' {
			return etag, false
		}
	}
	_, err := hex.Decode(etag[:], []byte(tag[1:33]))
	return etag, err == nil
}

// reader takes values off the front of b; bad means that they were not there.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	r.take(n)
	return v
}

func (r *reader) int() int64 {
	v, n := binary.Varint(r.b)
	r.take(n)
	return v
}

// take returns the next n bytes, none if there are not so many.
func (r *reader) take(n int) []byte {
	if n <= 0 || n > len(r.b) {
		r.bad, r.b = true, nil
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) string() string {
	n := r.uint()
	if n == 0 {
		return ""
	}
	return string(r.take(int(min(n, uint64(len(r.b))+1))))
}

func (r *reader) object(last string) (o ufs.Object) {
	same := r.uint()
	if same > uint64(len(last)) {
		r.bad, same = true, 0
	}
	o.Key = last[:same] + r.string()
	flag := r.take(1)
	o.Version.Bytes = r.int()
	if flag == nil {
		return o
	}
	if flag[0]&hasTime != 0 {
		sec := r.int()
		o.Version.ModTime = time.Unix(sec, int64(r.uint())).UTC()
	}
	if flag[0]&hasETag != 0 {
		o.Version.Tag = `"` + hex.EncodeToString(r.take(16)) + `"`
	} else if flag[0]&hasTag != 0 {
		o.Version.Tag = r.string()
	}
	o.Exec = flag[0]&hasExec != 0
	if flag[0]&hasLink != 0 {
		o.Link = r.string()
	}
	if flag[0]&isUnmountable != 0 {
		o.Unmountable = r.string()
	}
	return o
}
