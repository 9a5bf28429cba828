package s3ufs

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"stoker.dev/internal/testenv"
	"stoker.dev/ufs"
)

// levels are the findings by name.
func levels(t *testing.T, f *FS, prefix string) map[string]ufs.Finding {
	t.Helper()
	out := map[string]ufs.Finding{}
	for _, x := range f.Probe(t.Context(), prefix) {
		if _, twice := out[x.Name]; twice || (x.Level == ufs.Fine) != (x.Hint == "") || x.Detail == "" {
			t.Errorf("finding %+v", x)
		}
		out[x.Name] = x
	}
	return out
}

// A real server is fine in all but one thing, which it does not do.
func TestProbeOfAGoodStore(t *testing.T) {
	srv := testenv.StartS3(t)
	e := bucket(t, srv, "good")
	for i := range 30 {
		e.Put(fmt.Sprintf("p/%d/a b+%%é", i), []byte("hello"))
		e.Put(fmt.Sprintf("p/k%d", i), []byte("hello"))
	}
	f := e.FS.(*FS)
	for _, prefix := range []string{"", "p/"} {
		got := levels(t, f, prefix)
		for _, name := range []string{"reachable", "clock", "listing", "credentials", "paging", "delimiter", "start-after", "range", "versions", "checksums", "if-match", "latency"} {
			if x, ok := got[name]; !ok || x.Level != ufs.Fine {
				t.Errorf("prefix %q: %s is %+v (%v)", prefix, name, x, ok)
			}
		}
		if x := got["key-encoding"]; x.Level != ufs.Odd {
			t.Errorf("prefix %q: %+v", prefix, x)
		}
	}
	if got := levels(t, f, "none/"); got["listing"].Level != ufs.Odd || got["read"].Level != ufs.Odd {
		t.Errorf("nothing there: %v", got)
	}
	open := func(bucket string, l ufs.Location) *FS {
		l.Endpoint, l.PathStyle = srv.Endpoint, true
		f, err := Open(t.Context(), Options{Bucket: bucket, Location: l})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	if x := levels(t, open("nowhere", ufs.Location{}), "")["listing"]; x.Level != ufs.Bad || !strings.Contains(x.Detail, "404 NoSuchBucket") || !strings.Contains(x.Hint, "spelled") {
		t.Errorf("no bucket: %+v", x)
	}
	if x := levels(t, open("good", ufs.Location{Anonymous: true}), "")["listing"]; x.Level != ufs.Bad || !strings.Contains(x.Detail, "403") {
		t.Errorf("anonymous: %+v", x)
	}
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	if x := levels(t, open("good", ufs.Location{}), "")["listing"]; x.Level != ufs.Bad || !strings.Contains(x.Hint, "AWS_SECRET_ACCESS_KEY") {
		t.Errorf("wrong secret: %+v", x)
	}
	down, err := Open(t.Context(), Options{Bucket: "b", Location: ufs.Location{Endpoint: "http://127.0.0.1:1", PathStyle: true}})
	if err != nil {
		t.Fatal(err)
	}
	if got := levels(t, down, ""); len(got) != 1 || got["reachable"].Level != ufs.Bad {
		t.Errorf("nobody there: %v", got)
	}
	listens, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listens.Close()
	hangs, err := Open(t.Context(), Options{Bucket: "b", Location: ufs.Location{Endpoint: "http://" + listens.Addr().String(), PathStyle: true}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if got := hangs.Probe(ctx, ""); len(got) != 1 || got[0].Level != ufs.Bad || got[0].Detail != "http://"+listens.Addr().String()+"/b has not answered within 1s" {
		t.Errorf("it hangs: %+v", got)
	}
}

// oddStore is a store of two objects that does one thing wrong.
type oddStore struct {
	noDate, noETag, ignoreRange, ignoreMatch, ignoreMax, ignoreDelimiter, ignoreAfter, noEncoding, otherETag, cutOff, html bool
	skew                                                                                                                   time.Duration
	status                                                                                                                 int
	body                                                                                                                   string
}

func (s oddStore) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Date", time.Now().Add(s.skew).UTC().Format(http.TimeFormat))
	if s.noDate {
		w.Header()["Date"] = nil
	}
	if s.status != 0 {
		w.WriteHeader(s.status)
		fmt.Fprint(w, s.body)
		return
	}
	if !r.URL.Query().Has("list-type") {
		s.object(w, r)
		return
	}
	s.list(w, r)
}

func (s oddStore) list(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if s.html {
		fmt.Fprint(w, "<html>console</html>")
		return
	}
	keys := []string{"a", "b", "d/c"}
	for len(keys) > 0 && (keys[0] <= q.Get("start-after") && !s.ignoreAfter || keys[0] <= q.Get("continuation-token")) {
		keys = keys[1:]
	}
	more := "<IsTruncated>false</IsTruncated>"
	if q.Get("max-keys") == "1" && !s.ignoreMax && len(keys) > 1 {
		keys = keys[:1]
		more = fmt.Sprintf("<IsTruncated>%v</IsTruncated><NextContinuationToken>%s</NextContinuationToken>", !s.cutOff, keys[0])
	}
	fmt.Fprint(w, "<ListBucketResult><Name>b</Name>", more)
	if !s.noEncoding {
		fmt.Fprint(w, "<EncodingType>url</EncodingType>")
	}
	for _, k := range keys {
		if q.Get("delimiter") != "" && k == "d/c" && !s.ignoreDelimiter {
			fmt.Fprint(w, "<CommonPrefixes><Prefix>d/</Prefix></CommonPrefixes>")
			continue
		}
		fmt.Fprintf(w, "<Contents><Key>%s</Key><Size>5</Size><LastModified>2026-01-02T03:04:05Z</LastModified>", k)
		if !s.noETag {
			fmt.Fprint(w, `<ETag>"e"</ETag>`)
		}
		fmt.Fprint(w, "</Contents>")
	}
	fmt.Fprint(w, "</ListBucketResult>")
}

func (s oddStore) object(w http.ResponseWriter, r *http.Request) {
	tag := `"e"`
	if s.otherETag {
		tag = `"e-gzip"`
	}
	if !s.noETag {
		w.Header().Set("Etag", tag)
	}
	w.Header().Set("Last-Modified", "Fri, 02 Jan 2026 03:04:05 GMT")
	switch m := r.Header.Get("If-Match"); {
	case m != "" && m != tag && !s.ignoreMatch:
		w.WriteHeader(http.StatusPreconditionFailed)
	case s.ignoreRange:
		fmt.Fprint(w, "hello")
	default:
		w.Header().Set("Content-Range", "bytes 0-0/5")
		w.WriteHeader(http.StatusPartialContent)
		fmt.Fprint(w, "h")
	}
}

// What a store does wrong is found and named, and nothing else is.
func TestProbeOfOddStores(t *testing.T) {
	for name, c := range map[string]struct {
		store oddStore
		find  string
		level ufs.Level
		says  string
	}{
		"nothing wrong":       {oddStore{}, "", ufs.Fine, ""},
		"clock ahead":         {oddStore{skew: time.Minute}, "clock", ufs.Odd, "behind"},
		"clock far behind":    {oddStore{skew: -time.Hour}, "clock", ufs.Bad, "ahead"},
		"no date":             {oddStore{noDate: true}, "clock", ufs.Odd, "no Date"},
		"no ETag":             {oddStore{noETag: true}, "versions", ufs.Odd, "no ETag"},
		"another ETag":        {oddStore{otherETag: true}, "versions", ufs.Bad, "another version"},
		"no ranges":           {oddStore{ignoreRange: true}, "range", ufs.Bad, "ignored"},
		"no conditions":       {oddStore{ignoreMatch: true}, "if-match", ufs.Odd, "ignored"},
		"pages of any size":   {oddStore{ignoreMax: true}, "paging", ufs.Odd, "max-keys is ignored"},
		"pages that are lost": {oddStore{cutOff: true}, "paging", ufs.Bad, "nothing follows"},
		"no folders":          {oddStore{ignoreDelimiter: true}, "delimiter", ufs.Bad, "ignored"},
		"no start":            {oddStore{ignoreAfter: true}, "start-after", ufs.Odd, "not honoured"},
		"no encoding":         {oddStore{noEncoding: true}, "key-encoding", ufs.Odd, "ignored"},
		"a console":           {oddStore{html: true}, "listing", ufs.Bad, "no listing"},
		"overloaded":          {oddStore{status: 503}, "listing", ufs.Bad, "503"},
		"another region":      {oddStore{status: 301}, "listing", ufs.Bad, "301"},
		"something else":      {oddStore{status: 404, body: "<Error><Code>root:x:0:0 secret</Code><Message>secret</Message></Error>"}, "listing", ufs.Bad, "404 (no code of S3)"},
		"a code of S3":        {oddStore{status: 403, body: "<Error><Code>AccessDenied</Code><Message>secret</Message></Error>"}, "listing", ufs.Bad, "403 AccessDenied"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(c.store)
			defer srv.Close()
			f, err := Open(t.Context(), Options{Bucket: "b", Location: ufs.Location{Endpoint: srv.URL, PathStyle: true, Anonymous: true}})
			if err != nil {
				t.Fatal(err)
			}
			got := levels(t, f, "")
			if x := got[c.find]; c.find != "" && (x.Level != c.level || !strings.Contains(x.Detail, c.says)) {
				t.Errorf("%s is %+v, want level %d and %q", c.find, x, c.level, c.says)
			}
			for _, x := range got {
				if x.Name != c.find && x.Level != ufs.Fine && !(c.store.otherETag && x.Name == "latency") {
					t.Errorf("beside it: %+v", x)
				}
				if strings.Contains(x.Detail+x.Hint, "secret") || strings.Contains(x.Detail, "d/c") {
					t.Errorf("shows what the store holds: %+v", x)
				}
			}
		})
	}
}
