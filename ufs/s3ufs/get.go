package s3ufs

import (
	"context"
	"encoding/xml"
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
	if off != 0 || length != want.Bytes {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(off, 10)+"-"+strconv.FormatInt(off+length-1, 10))
	}
	if want.Tag != "" {
		req.Header.Set("If-Match", want.Tag)
	}
	if f.creds != nil {
		c, err := f.creds.Retrieve(ctx)
		if err != nil {
			return nil, f.noCredentials(ctx, key, err)
		}
		req.Header.Set(payloadHeader, unsigned)
		if err := f.signer.SignHTTP(ctx, c, req, unsigned, "s3", f.region, time.Now()); err != nil {
			return nil, stoker.Errorf(stoker.KindInternal, "s3.get", key, "sign: %w", err)
		}
	}
	resp, err := f.http.Do(req)
	if err != nil {
		return nil, f.noAnswer(ctx, "s3.get", key, err)
	}
	if err := f.accept(resp, key, want, off, length); err != nil {
		_ = resp.Body.Close()
		return nil, err
	}
	return &body{ctx: ctx, r: resp.Body, key: key, left: length}, nil
}

// accept checks that the answer is the range of the version asked for.
func (f *FS) accept(resp *http.Response, key string, want ufs.Version, off, length int64) error {
	total := int64(-1)
	switch resp.StatusCode {
	case http.StatusOK:
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
	default:
		return f.answerError(resp, key)
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

// answerError reads what the store says against a GET.
func (f *FS) answerError(resp *http.Response, key string) error {
	var e struct {
		Code    string
		Message string
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
	if err == nil {
		err = xml.Unmarshal(raw, &e)
	}
	if err != nil {
		e.Code = "" // an answer without a body that we know
	}
	var after time.Duration
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		after = time.Duration(s) * time.Second
	}
	return f.refusal("s3.get", key, resp.StatusCode, e.Code, e.Message, after)
}

// refusal is the one table from S3's statuses and codes to kinds.
func (f *FS) refusal(op, key string, status int, code, message string, after time.Duration) error {
	text := strings.TrimSpace(strconv.Itoa(status) + " " + code + " " + message)
	switch {
	case code == "NoSuchBucket":
		return stoker.Errorf(stoker.KindNotExist, op, key, "there is no bucket %s", f.bucket)
	case status == http.StatusNotFound:
		return stoker.Errorf(stoker.KindNotExist, op, key, "no such object in bucket %s", f.bucket)
	case status == http.StatusPreconditionFailed, status == http.StatusRequestedRangeNotSatisfiable:
		return stoker.Errorf(stoker.KindStale, op, key, "changed since it was listed (%s)", text)
	case code == "RequestTimeTooSkewed":
		return stoker.Errorf(stoker.KindDenied, op, key, "this machine's clock differs from the store's: set it by NTP (%s)", text)
	case code == "ExpiredToken", code == "TokenRefreshRequired":
		return stoker.Errorf(stoker.KindTransient, op, key, "the credentials have expired (%s)", text)
	case status == http.StatusForbidden, status == http.StatusUnauthorized:
		return stoker.Errorf(stoker.KindDenied, op, key, "the store refuses: check the credentials and the policy of bucket %s (%s)", f.bucket, text)
	case status == http.StatusTooManyRequests, status == http.StatusRequestTimeout, status >= 500, code == "SlowDown", code == "RequestTimeout":
		return &throttled{stoker.Error{Op: op, Key: key, Kind: stoker.KindTransient, Err: errors.New("the store answers " + text)}, after}
	case status == http.StatusMovedPermanently, status == http.StatusTemporaryRedirect:
		return stoker.Errorf(stoker.KindInvalid, op, key, "bucket %s is in another region: set --region (%s)", f.bucket, text)
	default:
		return stoker.Errorf(stoker.KindInvalid, op, key, "the store answers %s", text)
	}
}

// throttled is an answer that says when to come back.
type throttled struct {
	inner stoker.Error
	after time.Duration
}

func (e *throttled) Error() string { return e.inner.Error() }
func (e *throttled) Unwrap() error { return &e.inner }

// RetryAfter is what guard asks for.
func (e *throttled) RetryAfter() time.Duration { return e.after }

// noAnswer is an error of the network.
func (f *FS) noAnswer(ctx context.Context, op, key string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var creds interface{ ProviderName() string }
	if errors.As(err, &creds) || strings.Contains(err.Error(), "credentials") {
		return f.noCredentials(ctx, key, err)
	}
	return stoker.Errorf(stoker.KindTransient, op, key, "no answer from %s: %w", f.base, err)
}

func (f *FS) noCredentials(ctx context.Context, key string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return stoker.Errorf(stoker.KindDenied, "s3", key, "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, where the daemons run; or register the dataset with --anonymous (%w)", err)
}
