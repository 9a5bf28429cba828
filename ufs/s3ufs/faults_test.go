package s3ufs

import (
	"bytes"
	"context"
	"crypto/sha1" //nolint:gosec // S3 has it
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"stoker.dev"
	"stoker.dev/internal/testenv"
	"stoker.dev/ufs"
	"stoker.dev/ufs/guard"
)

// quick tries again at once.
var quick = guard.Options{BaseDelay: time.Millisecond, MaxDelay: 10 * time.Millisecond, Stall: time.Second, HeaderWait: 10 * time.Second}

// far is a bucket of a real store behind a proxy that injects faults.
type far struct {
	*guard.FS
	t      *testing.T
	direct *FS
	proxy  *testenv.Proxy
}

func startFar(t *testing.T, o guard.Options) *far {
	t.Helper()
	srv := testenv.StartS3(t)
	srv.Bucket(t, "far")
	p := testenv.CountingProxy(t, srv.Endpoint)
	open := func(endpoint string) *FS {
		f, err := Open(t.Context(), Options{Bucket: "far", Location: ufs.Location{Endpoint: endpoint, PathStyle: true}})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	return &far{FS: guard.New(open(p.URL()), o), t: t, direct: open(srv.Endpoint), proxy: p}
}

// put writes an object with a checksum of the whole and returns its version.
func (f *far) put(key string, body []byte, sum types.ChecksumAlgorithm) ufs.Version {
	f.t.Helper()
	if _, err := f.direct.client.PutObject(f.t.Context(), &s3.PutObjectInput{Bucket: &f.direct.bucket, Key: &key, Body: bytes.NewReader(body), ChecksumAlgorithm: sum}); err != nil {
		f.t.Fatalf("put %q: %v", key, err)
	}
	o, err := f.direct.Stat(f.t.Context(), key)
	if err != nil {
		f.t.Fatal(err)
	}
	return o.Version
}

// read reads a range, and what it cost.
func read(ctx context.Context, fs ufs.FS, key string, v ufs.Version, off, length int64) ([]byte, *guard.Count, error) {
	var c guard.Count
	r, err := fs.Open(guard.WithCount(ctx, &c), key, v, off, length)
	if err != nil {
		return nil, &c, err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	return b, &c, err
}

func content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// Every fault that comes once costs one more request and no byte twice; the
// bytes are right.
func TestFaultsOnTheWay(t *testing.T) {
	f := startFar(t, quick)
	const size = 1 << 20
	data := content(size)
	v := f.put("k", data, types.ChecksumAlgorithmCrc32c)
	slow := http.Header{"Content-Type": {"application/xml"}}
	for name, c := range map[string]struct {
		fault   testenv.Fault
		ask     int64 // bytes; size = all of the object, checked by its sum
		retried int64
	}{
		"503":                         {fault: testenv.Fault{Status: 503, Code: "SlowDown", Header: slow}, ask: size},
		"500":                         {fault: testenv.Fault{Status: 500, Code: "InternalError", Header: slow}, ask: size},
		"429 without a body":          {fault: testenv.Fault{Status: 429}, ask: size},
		"reset before the answer":     {fault: testenv.Fault{Reset: true}, ask: size},
		"reset in mid-body":           {fault: testenv.Fault{Reset: true, After: 300 << 10}, ask: size},
		"reset in a range":            {fault: testenv.Fault{Reset: true, After: 300 << 10}, ask: size - 1},
		"cut in mid-body":             {fault: testenv.Fault{Cut: true, After: 100 << 10}, ask: size},
		"cut in a range":              {fault: testenv.Fault{Cut: true, After: 100 << 10}, ask: size - 1},
		"stall in mid-body":           {fault: testenv.Fault{Stall: true, After: 200 << 10}, ask: size},
		"length too short":            {fault: testenv.Fault{End: true, After: 100}, ask: size},
		"length of a range too short": {fault: testenv.Fault{End: true, After: 100}, ask: size - 1},
		"length too long":             {fault: testenv.Fault{Header: http.Header{"Content-Length": {"2000000"}}}, ask: size},
		"wrong byte":                  {fault: testenv.Fault{Flip: true, After: 400 << 10}, ask: size, retried: size},
	} {
		f.proxy.Inject(func(_ testenv.Get, n int) testenv.Fault {
			if n == 0 {
				return c.fault
			}
			return testenv.Fault{}
		})
		got, count, err := read(t.Context(), f, "k", v, 0, c.ask)
		if err != nil || !bytes.Equal(got, data[:c.ask]) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		want := int64(2)
		if name == "reset before the answer" {
			want = count.Requests.Load() // net/http sends it again by itself if the connection was in use before
		}
		if count.Requests.Load() != want || count.Bytes.Load() != c.ask+c.retried || count.RetriedBytes.Load() != c.retried {
			t.Errorf("%s: %d requests, %d bytes, %d of no use, want 2, %d, %d", name,
				count.Requests.Load(), count.Bytes.Load(), count.RetriedBytes.Load(), c.ask+c.retried, c.retried)
		}
	}
}

// Bytes that stay wrong are named, and none of them is handed out: with every
// checksum that S3 has.
func TestWrongBytesAreNamed(t *testing.T) {
	f := startFar(t, quick)
	for _, sum := range []types.ChecksumAlgorithm{types.ChecksumAlgorithmCrc32, types.ChecksumAlgorithmCrc32c,
		types.ChecksumAlgorithmCrc64nvme, types.ChecksumAlgorithmSha1, types.ChecksumAlgorithmSha256} {
		for _, size := range []int{1000, 700_000} {
			key, data := fmt.Sprint(sum, size), content(size)
			v := f.put(key, data, sum)
			f.proxy.Inject(nil)
			if got, _, err := read(t.Context(), f, key, v, 0, v.Bytes); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s: %d bytes, %v", key, len(got), err)
			}
			f.proxy.Inject(func(testenv.Get, int) testenv.Fault { return testenv.Fault{Flip: true, After: int64(size / 2)} })
			got, count, err := read(t.Context(), f, key, v, 0, v.Bytes)
			if stoker.KindOf(err) != stoker.KindCorrupt || !strings.Contains(err.Error(), key) || len(got) != 0 || count.Requests.Load() != 2 {
				t.Errorf("%s: %d bytes of %d requests, %v", key, len(got), count.Requests.Load(), err)
			}
		}
	}
}

// An ETag is no checksum, nor is a checksum of checksums; what a store sends
// that is none is passed over.
func TestWhatIsNoChecksum(t *testing.T) {
	crc := func(h hash.Hash) string {
		h.Write([]byte("right"))
		return base64.StdEncoding.EncodeToString(h.Sum(nil))
	}
	for name, c := range map[string]struct {
		header map[string]string
		finds  bool
	}{
		"32 hex digits":   {map[string]string{"Etag": `"d41d8cd98f00b204e9800998ecf8427e"`}, false},
		"of parts":        {map[string]string{"X-Amz-Checksum-Crc32": crc(crc32.NewIEEE()) + "-2"}, false},
		"composite":       {map[string]string{"X-Amz-Checksum-Crc32": crc(crc32.NewIEEE()), "X-Amz-Checksum-Type": "COMPOSITE"}, false},
		"odd length":      {map[string]string{"X-Amz-Checksum-Crc32": "AAAA"}, false},
		"no base64":       {map[string]string{"X-Amz-Checksum-Sha1": "?"}, false},
		"sha1":            {map[string]string{"X-Amz-Checksum-Sha1": crc(sha1.New())}, true},
		"sha256":          {map[string]string{"X-Amz-Checksum-Sha256": crc(sha256.New()), "X-Amz-Checksum-Type": "FULL_OBJECT"}, true},
		"odd, then right": {map[string]string{"X-Amz-Checksum-Crc32c": "?", "X-Amz-Checksum-Crc32": crc(crc32.NewIEEE())}, true},
	} {
		h := http.Header{}
		for k, v := range c.header {
			h.Set(k, v)
		}
		fresh, want := sumOf(h)
		if (fresh != nil) != c.finds {
			t.Errorf("%s: found %v", name, fresh != nil)
			continue
		}
		if fresh != nil {
			s := fresh()
			s.Write([]byte("right"))
			if !bytes.Equal(s.Sum(nil), want) {
				t.Errorf("%s: another sum", name)
			}
		}
	}
}

// What was replaced or deleted in mid-read is named; bytes of two versions are
// never mixed.
func TestReplacedInMidRead(t *testing.T) {
	f := startFar(t, quick)
	const size = 500_000
	for name, c := range map[string]struct {
		change func(key string)
		kind   stoker.Kind
	}{
		"replaced by the same size": {func(key string) { f.put(key, bytes.Repeat([]byte("z"), size), "") }, stoker.KindStale},
		"replaced by a shorter one": {func(key string) { f.put(key, []byte("short"), "") }, stoker.KindStale},
		"deleted": {func(key string) {
			if _, err := f.direct.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &f.direct.bucket, Key: &key}); err != nil {
				t.Error(err)
			}
		}, stoker.KindNotExist},
	} {
		data := content(size)
		v := f.put(name, data, "")
		f.proxy.Inject(func(_ testenv.Get, n int) testenv.Fault {
			if n == 0 {
				return testenv.Fault{Cut: true, After: 200_000}
			}
			if n == 1 {
				c.change(name)
			}
			return testenv.Fault{}
		})
		got, _, err := read(t.Context(), f, name, v, 0, size-1)
		if stoker.KindOf(err) != c.kind || !strings.Contains(err.Error(), name) || !bytes.Equal(got, data[:len(got)]) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

// The same with a store that ignores If-Match: the answer's own version is
// compared when a body is resumed.
func TestResumeComparesTheVersion(t *testing.T) {
	var n atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if n.Add(1) == 1 {
			w.Header().Set("Etag", `"one"`)
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write(make([]byte, 40))
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Etag", `"two"`)
		w.Header().Set("Content-Range", "bytes 40-99/100")
		w.WriteHeader(206)
		_, _ = w.Write(make([]byte, 60))
	}))
	defer srv.Close()
	got, _, err := read(t.Context(), guard.New(anonymous(t, srv.URL), quick), "k", ufs.Version{Tag: `"one"`, Bytes: 100}, 0, 100)
	if stoker.KindOf(err) != stoker.KindStale || len(got) != 40 || n.Load() != 2 {
		t.Errorf("%d bytes of %d requests: %v", len(got), n.Load(), err)
	}
}

func anonymous(t *testing.T, url string) *FS {
	t.Helper()
	f, err := Open(t.Context(), Options{Bucket: "b", Location: ufs.Location{Endpoint: url, PathStyle: true, Anonymous: true}})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestRetryAfter(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-7": 0, "1e3": 0,
		"at 20s": 20 * time.Second, "at -1h": 0, // a date, so long after the answer's
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			after, now := text, time.Now().UTC()
			if in, ok := strings.CutPrefix(text, "at "); ok {
				d, _ := time.ParseDuration(in)
				after = now.Add(d).Format(http.TimeFormat)
				w.Header().Set("Date", now.Format(http.TimeFormat))
			}
			w.Header().Set("Retry-After", after)
			w.WriteHeader(503)
			fmt.Fprint(w, "<Error><Code>SlowDown</Code></Error>")
		}))
		f := anonymous(t, srv.URL)
		_, get := f.Open(t.Context(), "k", ufs.Version{Bytes: 1}, 0, 1)
		_, list := f.List(t.Context(), ufs.ListOptions{})
		for _, err := range []error{get, list} {
			var r interface {
				RetryAfter() time.Duration
				Throttled() bool
			}
			if stoker.KindOf(err) != stoker.KindTransient || !errors.As(err, &r) || !r.Throttled() || r.RetryAfter() != want {
				t.Errorf("Retry-After %q: %v", text, err)
			}
		}
		srv.Close()
	}
}

// A date is read by the store's own clock.
func TestRetryAfterByTheStoresClock(t *testing.T) {
	then := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	h := http.Header{"Date": {then.Format(http.TimeFormat)}, "Retry-After": {then.Add(9 * time.Second).Format(http.TimeFormat)}}
	if got := retryAfter(h); got != 9*time.Second {
		t.Errorf("%v", got)
	}
}

// rotating gives a new key with each Retrieve.
type rotating struct{ n atomic.Int64 }

func (r *rotating) Retrieve(context.Context) (aws.Credentials, error) {
	return aws.Credentials{AccessKeyID: fmt.Sprintf("KEY%d", r.n.Add(1)), SecretAccessKey: "s", SessionToken: "t"}, nil
}

// Keys that expire in the middle of many reads are fetched anew, once for all,
// and no read fails.
func TestExpiredKeysAreRenewed(t *testing.T) {
	var mu sync.Mutex
	valid, byKey := "KEY1", map[string]int{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, cred, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
		key, _, _ := strings.Cut(cred, "/")
		mu.Lock()
		byKey[key]++
		ok := key == valid
		if byKey["KEY1"] == 50 {
			valid = "KEY2"
		}
		mu.Unlock()
		if !ok {
			w.WriteHeader(400)
			fmt.Fprint(w, "<Error><Code>ExpiredToken</Code></Error>")
			return
		}
		w.Header().Set("Etag", `"e"`)
		_, _ = w.Write([]byte("hello"))
	}))
	defer srv.Close()
	t.Setenv("AWS_ACCESS_KEY_ID", "x")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "y")
	f, err := Open(t.Context(), Options{Bucket: "b", Location: ufs.Location{Endpoint: srv.URL, PathStyle: true}})
	if err != nil {
		t.Fatal(err)
	}
	keys := &rotating{}
	f.creds = aws.NewCredentialsCache(keys)
	g := guard.New(f, quick)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range 20 {
				if got, _, err := read(guard.WithPriority(t.Context(), guard.Preload), g, "k", ufs.Version{Tag: `"e"`, Bytes: 5}, 0, 5); err != nil || string(got) != "hello" {
					t.Errorf("%q, %v", got, err)
				}
			}
		})
	}
	wg.Wait()
	if n := keys.n.Load(); n != 2 || byKey["KEY2"] < 100 {
		t.Errorf("%d keys were fetched; requests %v", n, byKey)
	}
}

// A clock that differs is corrected by the store's Date, for reads and for
// listings; where the store still refuses, the error says by how much.
func TestClockSkew(t *testing.T) {
	for _, ahead := range []time.Duration{time.Hour, -2 * time.Hour} {
		for _, stubborn := range []bool{false, true} {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				now := time.Now().Add(ahead)
				w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
				signed, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
				if d := now.Sub(signed); err != nil || d > 15*time.Minute || d < -15*time.Minute || stubborn {
					w.WriteHeader(403)
					fmt.Fprint(w, "<Error><Code>RequestTimeTooSkewed</Code></Error>")
					return
				}
				if r.URL.Query().Has("list-type") {
					fmt.Fprint(w, "<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated></ListBucketResult>")
					return
				}
				_, _ = w.Write([]byte("hello"))
			}))
			t.Setenv("AWS_ACCESS_KEY_ID", "x")
			t.Setenv("AWS_SECRET_ACCESS_KEY", "y")
			f, err := Open(t.Context(), Options{Bucket: "b", Location: ufs.Location{Endpoint: srv.URL, PathStyle: true}})
			if err != nil {
				t.Fatal(err)
			}
			g := guard.New(f, quick)
			got, count, err := read(t.Context(), g, "k", ufs.Version{Bytes: 5}, 0, 5)
			_, list := g.List(t.Context(), ufs.ListOptions{})
			if list == nil { // the SDK knows the store's clock by now, too
				_, list = f.List(t.Context(), ufs.ListOptions{})
			}
			switch {
			case !stubborn && (err != nil || string(got) != "hello" || count.Requests.Load() != 2 || list != nil):
				t.Errorf("%v: %q after %d requests, %v; list %v", ahead, got, count.Requests.Load(), err, list)
			case stubborn && (stoker.KindOf(err) != stoker.KindDenied || !strings.Contains(err.Error(), "clock") || stoker.KindOf(list) != stoker.KindDenied):
				t.Errorf("%v, refused: %v; list %v", ahead, err, list)
			case stubborn && (!strings.Contains(err.Error(), "h0m") && !strings.Contains(err.Error(), "59m") ||
				!strings.Contains(err.Error(), map[bool]string{true: "behind", false: "ahead of"}[ahead > 0])):
				t.Errorf("%v: the difference is not named: %v", ahead, err)
			}
			srv.Close()
		}
	}
}
