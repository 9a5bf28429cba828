package api

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

type roundTrip func(*http.Request) *http.Response

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r), nil }

// Who waits for an answer for more than two seconds is told so, once.
func TestSlowAnswersAreSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := make(chan string, 10)
		c, err := NewController(ClientOptions{URL: "http://far:1", Slow: func(what, at string) { told <- what + " " + at }})
		if err != nil {
			t.Fatal(err)
		}
		takes := time.Second
		c.c.http.Transport = roundTrip(func(*http.Request) *http.Response {
			<-time.After(takes)
			return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader("{}"))}
		})
		for _, step := range []struct {
			takes time.Duration
			told  int
		}{{time.Second, 0}, {3 * time.Second, 1}, {3 * time.Second, 1}} {
			takes = step.takes
			if _, err := c.Version(t.Context()); err != nil {
				t.Fatal(err)
			}
			if len(told) != step.told {
				t.Errorf("after an answer in %v: told %d times, want %d", takes, len(told), step.told)
			}
		}
		if who := <-told; who != "controller http://far:1" {
			t.Errorf("told of %q", who)
		}
	})
}
