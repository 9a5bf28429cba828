package s3ufs

import (
	"strings"
	"testing"

	"stoker.dev"
	"stoker.dev/ufs"
)

// All buckets of a host have one endpoint, whether their names stand in the
// path or in the host.
func TestEndpointOfBuckets(t *testing.T) {
	for _, c := range []struct {
		at   ufs.Location
		want string
	}{
		{ufs.Location{Endpoint: "http://Store.example:9000", PathStyle: true}, "store.example:9000"},
		{ufs.Location{Endpoint: "http://store.example:9000"}, "store.example:9000"},
		{ufs.Location{Region: "eu-central-1", Anonymous: true}, "s3.eu-central-1.amazonaws.com"},
	} {
		t.Setenv("AWS_ENDPOINT_URL_S3", "")
		for _, bucket := range []string{"one", "two"} {
			f, err := Open(t.Context(), Options{Bucket: bucket, Location: c.at})
			if err != nil {
				t.Fatal(err)
			}
			if f.Endpoint() != c.want {
				t.Errorf("bucket %s at %+v has endpoint %s, want %s", bucket, c.at, f.Endpoint(), c.want)
			}
		}
	}
}

// An endpoint is stored and shown: one with credentials in it is refused, and
// they are not repeated.
func TestEndpoints(t *testing.T) {
	for u, ok := range map[string]bool{
		"": true, "http://host:9000": true, "https://s3.example.org/path": true, "http://[::1]:9000": true,
		"http://user:hunter2@host": false, "https://hunter2@host": false, "http://user:hun ter2@host": false, "hunter2@host": false,
		"ftp://host": false, "host:9000": false, "http://": false, "http://host?token=hunter2": false, "http://host#hunter2": false,
	} {
		err := checkEndpoint(u)
		if ok != (err == nil) || err != nil && (stoker.KindOf(err) != stoker.KindInvalid || strings.Contains(err.Error(), "ter2")) {
			t.Errorf("%q: %v", u, err)
		}
	}
}
