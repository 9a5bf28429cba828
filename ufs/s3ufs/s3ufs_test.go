package s3ufs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"stoker.dev"
	"stoker.dev/internal/testenv"
	"stoker.dev/ufs"
	"stoker.dev/ufs/ufstest"
)

// bucket makes a bucket of the server and writes to it through the S3 API.
func bucket(t *testing.T, srv *testenv.S3, name string) ufstest.Env {
	t.Helper()
	srv.Bucket(t, name)
	f, err := Open(t.Context(), Options{Bucket: name, Location: ufs.Location{Endpoint: srv.Endpoint, PathStyle: true}})
	if err != nil {
		t.Fatal(err)
	}
	return envOf(t, f)
}

func envOf(t *testing.T, f *FS) ufstest.Env {
	return ufstest.Env{
		FS: f,
		Put: func(key string, body []byte) {
			if _, err := f.client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &f.bucket, Key: &key, Body: bytes.NewReader(body)}); err != nil {
				t.Fatalf("put %q: %v", key, err)
			}
		},
		Delete: func(key string) {
			if _, err := f.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &f.bucket, Key: &key}); err != nil {
				t.Fatal(err)
			}
		},
	}
}

func TestConformance(t *testing.T) {
	srv, n := testenv.StartS3(t), 0
	ufstest.Run(t, func(t *testing.T) ufstest.Env {
		n++
		return bucket(t, srv, fmt.Sprintf("bucket-%d", n))
	})
}

// Files placed in the server's folder have no ETag: size and time stand in.
func TestConformanceWithoutETags(t *testing.T) {
	srv, n := testenv.StartS3(t), 0
	ufstest.Run(t, func(t *testing.T) ufstest.Env {
		n++
		e := bucket(t, srv, fmt.Sprintf("bucket-%d", n))
		dir := filepath.Join(srv.Root, fmt.Sprintf("bucket-%d", n))
		e.NoTags = true
		e.Put = func(key string, body []byte) {
			p := filepath.Join(dir, key)
			if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p, body, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return e
	})
}

func TestWhoMayRead(t *testing.T) {
	srv := testenv.StartS3(t)
	e := bucket(t, srv, "private")
	e.Put("k", []byte("secret"))
	at := func(l ufs.Location) error {
		l.Endpoint, l.PathStyle = srv.Endpoint, true
		f, err := Open(t.Context(), Options{Bucket: "private", Location: l})
		if err != nil {
			return err
		}
		_, listErr := f.List(t.Context(), ufs.ListOptions{})
		r, err := f.Open(t.Context(), "k", ufs.Version{Bytes: 6}, 0, 6)
		if err == nil {
			_ = r.Close()
		}
		if (err == nil) != (listErr == nil) {
			t.Errorf("listing says %v, reading says %v", listErr, err)
		}
		return err
	}
	if err := at(ufs.Location{}); err != nil {
		t.Errorf("with credentials: %v", err)
	}
	if err := at(ufs.Location{Anonymous: true}); stoker.KindOf(err) != stoker.KindDenied {
		t.Errorf("anonymous: %v", err)
	}
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	if err := at(ufs.Location{}); stoker.KindOf(err) != stoker.KindDenied || strings.Contains(err.Error(), "wrong") {
		t.Errorf("wrong secret: %v", err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	if err := at(ufs.Location{}); stoker.KindOf(err) != stoker.KindDenied || !strings.Contains(err.Error(), "AWS_ACCESS_KEY_ID") {
		t.Errorf("no credentials: %v", err)
	}
}

func TestNoBucketAndNoServer(t *testing.T) {
	srv := testenv.StartS3(t)
	open := func(bucket, endpoint string) *FS {
		f, err := Open(t.Context(), Options{Bucket: bucket, Location: ufs.Location{Endpoint: endpoint, PathStyle: true}})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	if _, err := open("nowhere", srv.Endpoint).List(t.Context(), ufs.ListOptions{}); stoker.KindOf(err) != stoker.KindNotExist || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("no such bucket: %v", err)
	}
	down := open("b", "http://127.0.0.1:1")
	if _, err := down.List(t.Context(), ufs.ListOptions{}); stoker.KindOf(err) != stoker.KindTransient {
		t.Errorf("list without a server: %v", err)
	}
	if _, err := down.Open(t.Context(), "k", ufs.Version{Bytes: 1}, 0, 1); stoker.KindOf(err) != stoker.KindTransient {
		t.Errorf("get without a server: %v", err)
	}
	for _, bad := range []Options{{}, {Bucket: "a/b"}, {Bucket: "b", Location: ufs.Location{Endpoint: "ftp://x"}}, {Bucket: "b", Location: ufs.Location{Profile: "no-such-profile"}}} {
		if _, err := Open(t.Context(), bad); stoker.KindOf(err) != stoker.KindInvalid {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// The endpoint of the environment is used, and by path where the host is an
// address.
func TestEndpointOfTheEnvironment(t *testing.T) {
	srv := testenv.StartS3(t)
	e := bucket(t, srv, "env")
	e.Put("k", []byte("hello"))
	t.Setenv("AWS_ENDPOINT_URL_S3", srv.Endpoint)
	f, err := Open(t.Context(), Options{Bucket: "env"})
	if err != nil {
		t.Fatal(err)
	}
	o, err := f.Stat(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	r, err := f.Open(t.Context(), "k", o.Version, 1, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != "ell" {
		t.Errorf("%q, %v", b, err)
	}
}

// What a store may answer besides the right thing.
func TestOddAnswers(t *testing.T) {
	mod := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	want := ufs.Version{Tag: `"right"`, ModTime: mod, Bytes: 100}
	ok := func(w http.ResponseWriter) {
		w.Header().Set("Etag", `"right"`)
		w.Header().Set("Last-Modified", mod.Format(http.TimeFormat))
		w.Header().Set("Content-Range", "bytes 10-19/100")
		w.Header().Set("Content-Length", "10")
	}
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter)
		kind   stoker.Kind
		says   string
	}{
		"another tag, If-Match ignored": {func(w http.ResponseWriter) { ok(w); w.Header().Set("Etag", `"new"`); w.WriteHeader(206) }, stoker.KindStale, "ETag"},
		"a later time": {func(w http.ResponseWriter) {
			ok(w)
			w.Header().Set("Last-Modified", mod.Add(time.Hour).Format(http.TimeFormat))
			w.WriteHeader(206)
		}, stoker.KindStale, "modified"},
		"another size": {func(w http.ResponseWriter) {
			ok(w)
			w.Header().Set("Content-Range", "bytes 10-19/200")
			w.WriteHeader(206)
		}, stoker.KindStale, "200"},
		"another range": {func(w http.ResponseWriter) {
			ok(w)
			w.Header().Set("Content-Range", "bytes 0-9/100")
			w.WriteHeader(206)
		}, stoker.KindTransient, "Content-Range"},
		"another length": {func(w http.ResponseWriter) { ok(w); w.Header().Set("Content-Length", "20"); w.WriteHeader(206) }, stoker.KindTransient, "says 20"},
		"range ignored":  {func(w http.ResponseWriter) { w.Header().Set("Content-Length", "100"); w.WriteHeader(200) }, stoker.KindInternal, "Range"},
		"slow down":      {func(w http.ResponseWriter) { w.Header().Set("Retry-After", "7"); w.WriteHeader(503) }, stoker.KindTransient, "503"},
		"precondition":   {func(w http.ResponseWriter) { w.WriteHeader(412) }, stoker.KindStale, "412"},
		"clock skew": {func(w http.ResponseWriter) {
			w.WriteHeader(403)
			fmt.Fprint(w, "<Error><Code>RequestTimeTooSkewed</Code></Error>")
		}, stoker.KindDenied, "clock"},
		"other region": {func(w http.ResponseWriter) { w.Header().Set("Location", "http://elsewhere/"); w.WriteHeader(301) }, stoker.KindInvalid, "region"},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("If-Match") != `"right"` || r.Header.Get("Range") != "bytes=10-19" {
				t.Errorf("headers %v", r.Header)
			}
			c.answer(w)
		}))
		f, err := Open(t.Context(), Options{Bucket: "b", Location: ufs.Location{Endpoint: srv.URL, PathStyle: true, Anonymous: true}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Open(t.Context(), "k", want, 10, 10)
		if stoker.KindOf(err) != c.kind || err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want kind %v and %q", name, err, c.kind, c.says)
		}
		var again interface{ RetryAfter() time.Duration }
		if name == "slow down" && (!errors.As(err, &again) || again.RetryAfter() != 7*time.Second) {
			t.Errorf("Retry-After is lost in %v", err)
		}
		srv.Close()
	}
}

// A body that ends early is an error, not a short object.
func TestTruncatedBody(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		w.WriteHeader(200)
		_, _ = w.Write(make([]byte, 40))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	defer srv.Close()
	f, err := Open(context.Background(), Options{Bucket: "b", Location: ufs.Location{Endpoint: srv.URL, PathStyle: true, Anonymous: true}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := f.Open(t.Context(), "k", ufs.Version{Bytes: 100}, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); stoker.KindOf(err) != stoker.KindTransient || len(b) != 40 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}
