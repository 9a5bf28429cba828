package s3ufs

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"stoker.dev"
	"stoker.dev/ufs"
)

// lists opens a bucket of a store that answers every request with body.
func lists(t *testing.T, status int, body string) *FS {
	return answers(t, status, func() string { return body })
}

func answers(t *testing.T, status int, body func() string) *FS {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		fmt.Fprint(w, body())
	}))
	t.Cleanup(srv.Close)
	f, err := Open(t.Context(), Options{Bucket: "b", Location: ufs.Location{Endpoint: srv.URL, PathStyle: true, Anonymous: true}})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func result(rest string) string {
	return `<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>` + rest + `</ListBucketResult>`
}

func entry(key string) string {
	return `<Contents><Key>` + key + `</Key><Size>3</Size><ETag>"x"</ETag><LastModified>2026-01-02T03:04:05.000Z</LastModified></Contents>`
}

// Keys of any bytes come as they are, with and without URL encoding.
func TestKeysInListings(t *testing.T) {
	const encoded = "<EncodingType>url</EncodingType>"
	for name, c := range map[string]struct{ page, key string }{
		"plain":                  {entry("a/b c+d%2F"), "a/b c+d%2F"},
		"entities":               {entry("a&amp;b&lt;&gt;&#10;&#x9;"), "a&b<>\n\t"},
		"encoded":                {encoded + entry("a/b%20c%2Bd%252F"), "a/b c+d%2F"},
		"plus is a blank":        {encoded + entry("a+b"), "a b"},
		"newline, encoded":       {encoded + entry("a%0Ab%0D"), "a\nb\r"},
		"NUL, encoded":           {encoded + entry("a%00b"), "a\x00b"},
		"invalid UTF-8, encoded": {encoded + entry("a%FF%FE"), "a\xff\xfe"},
		"up and away, encoded":   {encoded + entry("..%2F..%2Fetc%2Fpasswd"), "../../etc/passwd"},
		"1,024 bytes":            {entry(strings.Repeat("k", 1024)), strings.Repeat("k", 1024)},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := lists(t, 200, result("<IsTruncated>false</IsTruncated>"+c.page)).List(t.Context(), ufs.ListOptions{})
			if err != nil || len(p.Objects) != 1 || p.Objects[0].Key != c.key || p.Objects[0].Version.Bytes != 3 || p.Next != "" {
				t.Errorf("%+v, %v, want %q", p, err, c.key)
			}
		})
	}
}

// An answer that is no whole page is an error, never a short listing.
func TestBrokenListings(t *testing.T) {
	whole := result("<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>" + entry("a") + entry("b"))
	for name, c := range map[string]struct {
		status int
		body   string
		kind   stoker.Kind
	}{
		"truncated without a token": {200, result("<IsTruncated>true</IsTruncated>" + entry("a")), stoker.KindTransient},
		"no such bucket":            {404, "<Error><Code>NoSuchBucket</Code></Error>", stoker.KindNotExist},
		"busy":                      {503, "<Error><Code>SlowDown</Code></Error>", stoker.KindTransient},
		"a bad escape":              {200, result("<EncodingType>url</EncodingType>" + entry("a%zz")), stoker.KindTransient},
		"another document":          {200, "<html><body>Sign in</body></html>", stoker.KindTransient},
		"another bucket":            {200, strings.Replace(whole, "<Name>b<", "<Name>other<", 1), stoker.KindCorrupt},
		"nothing":                   {200, "", stoker.KindTransient},
		"not XML":                   {200, "{}", stoker.KindTransient},
		"a size that is none":       {200, strings.Replace(whole, ">3<", ">three<", 1), stoker.KindTransient},
		"a negative size":           {200, strings.Replace(whole, ">3<", ">-3<", 1), stoker.KindCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := lists(t, c.status, c.body).List(t.Context(), ufs.ListOptions{})
			if err == nil || stoker.KindOf(err) != c.kind {
				t.Errorf("%+v, %v (%v), want %v", p, err, stoker.KindOf(err), c.kind)
			}
		})
	}
	cut := ""
	f := answers(t, 200, func() string { return cut })
	for n := range len(whole) {
		cut = whole[:n]
		if p, err := f.List(t.Context(), ufs.ListOptions{}); err == nil {
			t.Fatalf("cut after %d bytes, %q, and it is taken for a page of %d keys", n, whole[max(0, n-30):n], len(p.Objects))
		}
	}
}
