package s3ufs

import (
	"strings"
	"testing"

	"stoker.dev"
)

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
