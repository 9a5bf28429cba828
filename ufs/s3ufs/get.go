package s3ufs

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
)

// Headers of S3 that net/http has no names for.
const (
	unsigned      = "UNSIGNED-PAYLOAD"
	payloadHeader = "X-Amz-Content-Sha256"
)

// Open implements ufs.FS: one signed GET of a range, on condition that the
// object still has the version's ETag.
func (f *FS) Open(ctx context.Context, key string, want ufs.Version, off, length int64) (io.ReadCloser, error) {
	if length <= 0 || off < 0 || off+length > want.Bytes {
		return nil, stoker.Errorf(stoker.KindInvalid, "s3.get", key, "bytes %d+%d of %d", off, length, want.Bytes)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.base+"/"+escapeKey(key), nil)
	if err != nil {
		return nil, stoker.Errorf(stoker.KindInvalid, "s3.get", key, "%w", err)
	}
	whole := off == 0 && length == want.Bytes
	if whole {
		req.Header.Set(wantSums, "ENABLED")
	} else {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(off, 10)+"-"+strconv.FormatInt(off+length-1, 10))
	}
	if want.Tag != "" {
		req.Header.Set("If-Match", want.Tag)
	}
	signedBy, err := f.sign(ctx, req, key)
	if err != nil {
		return nil, err
	}
	resp, err := f.http.Do(req)
	if err != nil {
		return nil, f.noAnswer(ctx, "s3.get", key, err)
	}
	if err := f.accept(resp, key, want, off, length); err != nil {
		_ = resp.Body.Close()
		f.expired(ctx, err, signedBy)
		return nil, err
	}
	b := &body{ctx: ctx, r: resp.Body, key: key, left: length}
	if whole {
		if fresh, sum := sumOf(resp.Header); fresh != nil {
			return summed{b, fresh, sum}, nil
		}
	}
	return b, nil
}

// accept checks that the answer is the range of the version asked for.
func (f *FS) accept(resp *http.Response, key string, want ufs.Version, off, length int64) error {
	total := int64(-1)
	switch resp.StatusCode {
	case http.StatusOK:
		if tag := resp.Header.Get("Etag"); off == 0 && tag != "" && tag == want.Tag && resp.ContentLength >= 0 && resp.ContentLength != want.Bytes {
			return stoker.Errorf(stoker.KindTransient, "s3.get", key, "the version asked for has %d bytes, the answer says %d", want.Bytes, resp.ContentLength)
		}
		if total = resp.ContentLength; off != 0 || total >= 0 && total != want.Bytes {
			if total >= 0 && total != want.Bytes {
				return changed(key, want, ufs.Version{Bytes: total})
			}
			return stoker.Errorf(stoker.KindInternal, "s3.get", key, "the store ignores Range: it cannot be read in parts")
		}
	case http.StatusPartialContent:
		from, to, all, ok := parseContentRange(resp.Header.Get("Content-Range"))
		if total = all; !ok || from != off || to != off+length-1 {
			if ok && all != want.Bytes {
				return changed(key, want, ufs.Version{Bytes: all})
			}
			return stoker.Errorf(stoker.KindTransient, "s3.get", key, "asked for bytes %d+%d, got Content-Range %q", off, length, resp.Header.Get("Content-Range"))
		}
		if resp.ContentLength >= 0 && resp.ContentLength != length {
			return stoker.Errorf(stoker.KindTransient, "s3.get", key, "asked for %d bytes, the answer says %d", length, resp.ContentLength)
		}
	default:
		return f.answerError("s3.get", resp, key)
	}
	got := ufs.Version{Tag: resp.Header.Get("Etag"), Bytes: want.Bytes}
	if total >= 0 {
		got.Bytes = total
	}
	if t, err := http.ParseTime(resp.Header.Get("Last-Modified")); err == nil {
		got.ModTime = t
	}
	if !want.Same(got) {
		return changed(key, want, got)
	}
	return nil
}

func changed(key string, want, got ufs.Version) error {
	switch {
	case want.Bytes != got.Bytes:
		return stoker.Errorf(stoker.KindStale, "s3.get", key, "changed since it was listed: it had %d bytes, now %d", want.Bytes, got.Bytes)
	case want.Tag != "" && got.Tag != "" && want.Tag != got.Tag:
		return stoker.Errorf(stoker.KindStale, "s3.get", key, "changed since it was listed: its ETag was %s, now %s", want.Tag, got.Tag)
	}
	return stoker.Errorf(stoker.KindStale, "s3.get", key, "changed since it was listed: modified %s, now %s",
		want.ModTime.UTC().Format(time.RFC3339), got.ModTime.UTC().Format(time.RFC3339))
}

// parseContentRange reads "bytes from-to/all".
func parseContentRange(s string) (from, to, all int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	span, size, ok2 := strings.Cut(s, "/")
	a, b, ok3 := strings.Cut(span, "-")
	var errs [3]error
	from, errs[0] = strconv.ParseInt(a, 10, 64)
	to, errs[1] = strconv.ParseInt(b, 10, 64)
	all, errs[2] = strconv.ParseInt(size, 10, 64)
	return from, to, all, ok && ok2 && ok3 && errors.Join(errs[:]...) == nil
}

// escapeKey writes a key as the path of a URL, as S3 signs it: every byte
// but the unreserved ones (RFC 3986) and '/' is escaped.
func escapeKey(key string) string {
	const hex = "0123456789ABCDEF"
	plain := func(c byte) bool {
		return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
			c == '-' || c == '_' || c == '.' || c == '~' || c == '/'
	}
	n := 0
	for i := range len(key) {
		if !plain(key[i]) {
			n++
		}
	}
	if n == 0 {
		return key
	}
	b := make([]byte, 0, len(key)+2*n)
	for i := range len(key) {
		if c := key[i]; plain(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', hex[c>>4], hex[c&15])
		}
	}
	return string(b)
}

// body hands out exactly the bytes asked for.
type body struct {
	ctx  context.Context // of the request
	r    io.ReadCloser
	key  string
	left int64
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	switch {
	case b.left == 0:
		return n, nil
	case err == nil:
		return n, nil
	case b.ctx.Err() != nil:
		return n, b.ctx.Err()
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return n, stoker.Errorf(stoker.KindTransient, "s3.get", b.key, "the body broke off with %d bytes left: %w", b.left, err)
}

// Close implements io.Closer. A body read to its end gives its connection
// back.
func (b *body) Close() error {
	if b.left == 0 {
		var end [1]byte
		_, _ = b.r.Read(end[:]) // only to see the end
	}
	return b.r.Close()
}
