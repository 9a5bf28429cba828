package s3ufs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	"stoker.dev"
	"stoker.dev/internal/testenv"
	"stoker.dev/ufs"
	"stoker.dev/ufs/ufstest"
)

func openObjects(t *testing.T, uri string) *Objects {
	t.Helper()
	o, err := OpenObjects(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.fs.http.CloseIdleConnections)
	return o
}

func TestObjects(t *testing.T) {
	s := testenv.StartS3(t)
	t.Setenv("AWS_ENDPOINT_URL_S3", s.Endpoint)
	s.Bucket(t, "store")
	n := 0
	ufstest.Objects(t, func(t *testing.T, fresh bool) ufs.Objects {
		if fresh {
			n++
		}
		return openObjects(t, fmt.Sprintf("s3://store/some/prefix-%d", n))
	})
	if err := openObjects(t, "s3://store").CheckObjects(t.Context()); err != nil {
		t.Error(err)
	}
	if err := openObjects(t, "s3://nowhere").CheckObjects(t.Context()); stoker.KindOf(err) != stoker.KindNotExist || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("no bucket: %v", err)
	}
	names, err := openObjects(t, "s3://store").List(t.Context(), "probe/")
	if err != nil || len(names) != 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
	u := strings.TrimPrefix(s.Endpoint, "http://")
	t.Setenv("AWS_ENDPOINT_URL_S3", "")
	named := openObjects(t, "s3://store/named?path-style&region=us-east-1&endpoint=http://"+strings.Replace(u, "127.0.0.1", "localhost", 1))
	if _, err := named.PutIfAbsent(t.Context(), "x", []byte("1")); err != nil {
		t.Error(err)
	}
	for _, uri := range []string{"", "s3://", "file:///x", "s3:///x", "s3://b?endpiont=http://x", "s3://b?endpoint=ftp://x", "s3://b?path-style=maybe", "s3://b?%zz"} {
		if _, err := OpenObjects(t.Context(), uri); stoker.KindOf(err) != stoker.KindInvalid || err == nil {
			t.Errorf("%q: %v", uri, err)
		}
	}
}

// oddProxy stands before an S3 server and does something odd to some requests.
func oddProxy(t *testing.T, backend string, odd func(n int, r *http.Request, next http.Handler, w http.ResponseWriter)) {
	t.Helper()
	to, err := url.Parse(backend)
	if err != nil {
		t.Fatal(err)
	}
	next := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to); r.Out.Host = r.In.Host }}
	var mu sync.Mutex
	counts := map[string]int{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		counts[r.Method]++
		n := counts[r.Method]
		mu.Unlock()
		odd(n, r, next, w)
	}))
	t.Cleanup(srv.Close)
	t.Setenv("AWS_ENDPOINT_URL_S3", srv.URL)
}

// A write whose answer is lost is tried again, and finds itself there: it has
// won. Another's write in between has not.
func TestLostAnswerToAWrite(t *testing.T) {
	s := testenv.StartS3(t)
	s.Bucket(t, "store")
	t.Setenv("AWS_ENDPOINT_URL_S3", s.Endpoint)
	other := openObjects(t, "s3://store")
	var between func()
	oddProxy(t, s.Endpoint, func(n int, r *http.Request, next http.Handler, w http.ResponseWriter) {
		if r.Method != http.MethodPut || n%2 == 0 {
			next.ServeHTTP(w, r)
			return
		}
		if between == nil {
			next.ServeHTTP(httptest.NewRecorder(), r)
		} else {
			between()
		}
		panic(http.ErrAbortHandler)
	})
	o := openObjects(t, "s3://store")
	tag, err := o.PutIfAbsent(t.Context(), "x", []byte("1"))
	if err != nil {
		t.Fatal(err)
	}
	if tag, err = o.ReplaceIf(t.Context(), "x", []byte("2"), tag); err != nil {
		t.Fatal(err)
	}
	between = func() {
		if _, err := other.ReplaceIf(t.Context(), "x", []byte("another's"), tag); err != nil {
			t.Error(err)
		}
	}
	if _, err := o.ReplaceIf(t.Context(), "x", []byte("3"), tag); stoker.KindOf(err) != stoker.KindHeld || err == nil {
		t.Errorf("another had written: %v", err)
	}
	if body, _, err := other.Get(t.Context(), "x"); err != nil || string(body) != "another's" {
		t.Errorf("%q, %v", body, err)
	}
}

// A large object whose body breaks off goes on at its byte; one that changed
// meanwhile is not mixed with itself.
func TestLargeObjectResumes(t *testing.T) {
	s := testenv.StartS3(t)
	s.Bucket(t, "store")
	t.Setenv("AWS_ENDPOINT_URL_S3", s.Endpoint)
	direct := openObjects(t, "s3://store")
	body := bytes.Repeat([]byte("0123456789"), 1<<18)
	tag, err := direct.PutIfAbsent(t.Context(), "x", body)
	if err != nil {
		t.Fatal(err)
	}
	change := false
	var ranges []string
	oddProxy(t, s.Endpoint, func(n int, r *http.Request, next http.Handler, w http.ResponseWriter) {
		ranges = append(ranges, r.Header.Get("Range"))
		if n%2 == 0 {
			next.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		_, _ = w.Write(rec.Body.Bytes()[:1<<20])
		if change {
			if _, err := direct.ReplaceIf(t.Context(), "x", bytes.Repeat([]byte("x"), len(body)), tag); err != nil {
				t.Error(err)
			}
		}
		panic(http.ErrAbortHandler)
	})
	o := openObjects(t, "s3://store")
	var got bytes.Buffer
	if err := o.GetTo(t.Context(), "x", &got); err != nil || !bytes.Equal(got.Bytes(), body) {
		t.Errorf("%d bytes, %v", got.Len(), err)
	}
	if len(ranges) != 2 || ranges[0] != "" || !strings.HasPrefix(ranges[1], "bytes=") || ranges[1] == "bytes=0-" {
		t.Errorf("ranges %q", ranges)
	}
	change = true
	if err := o.GetTo(t.Context(), "x", io.Discard); stoker.KindOf(err) != stoker.KindHeld || err == nil {
		t.Errorf("it changed meanwhile: %v", err)
	}
	if err := direct.GetTo(t.Context(), "x", failingWriter{}); !errors.Is(err, errFull) || stoker.KindOf(err) == stoker.KindTransient {
		t.Errorf("a writer that fails: %v", err)
	}
}

var errFull = errors.New("full")

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errFull }

// A store that ignores conditions is found out, and so is one that refuses
// those that hold.
func TestStoreWithoutConditions(t *testing.T) {
	t.Run("ignores them", func(t *testing.T) { storeWithout(t, false, "ignores") })
	t.Run("refuses a right one", func(t *testing.T) { storeWithout(t, true, "though its If-Match holds") })
}

func storeWithout(t *testing.T, refuses bool, want string) {
	for k, v := range (&testenv.S3{AccessKey: "k", SecretKey: "s"}).Env() {
		t.Setenv(k, v)
	}
	var mu sync.Mutex
	bodies := map[string][]byte{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		w.Header().Set("Etag", `"constant"`)
		switch r.Method {
		case http.MethodPut:
			if _, there := bodies[r.URL.Path]; refuses && (r.Header.Get("If-Match") != "" || r.Header.Get("If-None-Match") != "" && there) {
				w.WriteHeader(http.StatusPreconditionFailed)
				return
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			bodies[r.URL.Path] = body
		case http.MethodGet:
			_, _ = w.Write(bodies[r.URL.Path])
		case http.MethodDelete:
			delete(bodies, r.URL.Path)
			w.WriteHeader(http.StatusNoContent)
		}
	}))
	t.Cleanup(srv.Close)
	t.Setenv("AWS_ENDPOINT_URL_S3", srv.URL)
	o := openObjects(t, "s3://store")
	if err := o.CheckObjects(t.Context()); stoker.KindOf(err) != stoker.KindInvalid || err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v", err)
	}
	if len(bodies) != 0 {
		t.Errorf("left behind: %d", len(bodies))
	}
}
