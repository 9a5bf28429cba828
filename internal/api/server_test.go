package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"stoker.dev"
)

// answer is what a client makes of a handler's answer.
func answer(t testing.TB, h http.HandlerFunc) error {
	t.Helper()
	s := httptest.NewServer(h)
	defer s.Close()
	c, err := NewController(ClientOptions{URL: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Version(t.Context())
	return err
}

// Every kind reaches the other side, with its text and nothing else.
func TestErrorsKeepTheirKind(t *testing.T) {
	statuses := map[int]stoker.Kind{}
	for k := stoker.KindInternal; k <= stoker.KindIncomplete; k++ {
		told := fmt.Errorf("outer: %w", stoker.Errorf(k, "op", "a\x01b", "why: <&>"))
		rec := httptest.NewRecorder()
		WriteError(rec, told)
		if other, twice := statuses[rec.Code]; twice {
			t.Errorf("%v and %v share status %d", k, other, rec.Code)
		}
		statuses[rec.Code] = k
		if k == stoker.KindTransient && rec.Header().Get("Retry-After") == "" {
			t.Error("Transient has no Retry-After")
		}
		err := answer(t, func(w http.ResponseWriter, _ *http.Request) { WriteError(w, told) })
		wantKind(t, "told "+k.String(), err, k)
		if err != nil && err.Error() != told.Error() {
			t.Errorf("%v: text %q, want %q", k, err, told)
		}
		// Without a body, by header; and without that, by status.
		wantKind(t, "header "+k.String(), answer(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(kindHeader, k.String())
			w.WriteHeader(http.StatusInternalServerError)
		}), k)
		wantKind(t, "status "+k.String(), answer(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(statusOf(k)) }), k)
	}
}

// A proxy's page gets its kind from the status.
func TestForeignErrors(t *testing.T) {
	for status, kind := range map[int]stoker.Kind{
		401: stoker.KindDenied, 403: stoker.KindDenied, 404: stoker.KindNotExist, 405: stoker.KindInvalid, 413: stoker.KindInvalid,
		429: stoker.KindTransient, 500: stoker.KindInternal, 502: stoker.KindTransient, 503: stoker.KindTransient, 504: stoker.KindTransient, 302: stoker.KindInternal,
	} {
		for _, body := range []string{"", "<html>" + strings.Repeat("x", 1<<20), `{"kind":""}`, `{`, `[]`} {
			wantKind(t, fmt.Sprint(status), answer(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(status)
				_, _ = io.WriteString(w, body)
			}), kind)
		}
	}
}

// A text as long as may be arrives even where JSON makes six bytes of each.
func TestLongErrorsArrive(t *testing.T) {
	err := answer(t, func(w http.ResponseWriter, _ *http.Request) {
		WriteError(w, stoker.Errorf(stoker.KindStale, "op", "", "%s", strings.Repeat("<", 2*maxMessageBytes)))
	})
	wantKind(t, "long", err, stoker.KindStale)
	if err != nil && (!strings.HasPrefix(err.Error(), "op: <<<") || len(err.Error()) > maxMessageBytes+10) {
		t.Errorf("%d bytes arrived: %.20q", len(err.Error()), err)
	}
}

func TestReadJSON(t *testing.T) {
	read := func(body string) (EvictRequest, error) {
		r := httptest.NewRequest(http.MethodPost, "/v1/evict", strings.NewReader(body))
		v := EvictRequest{}
		return v, ReadJSON(httptest.NewRecorder(), r, &v)
	}
	for _, body := range []string{"", " \n", `{}`, `{"force":true}`, ` {"force":false} ` + "\n"} {
		if _, err := read(body); err != nil {
			t.Errorf("%q: %v", body, err)
		}
	}
	for name, body := range map[string]string{
		"unknown field": `{"forse":true}`, "garbage": "\x00\xff", "half": `{"force":`, "wrong type": `{"force":"yes"}`, "two values": `{} {}`,
		"value and garbage": `{}x`, "list": `[]`, "bad id": `{"manifest":"zz"}`,
		"huge": `{"force":true` + strings.Repeat(" ", maxRequestBytes) + `}`, "huge string": `{"x":"` + strings.Repeat("x", maxRequestBytes) + `"}`,
	} {
		_, err := read(body)
		wantKind(t, name, err, stoker.KindInvalid)
	}
}

// A body that never ends is read no further than the limit.
func TestReadJSONStopsAtItsLimit(t *testing.T) {
	n := &counting{}
	r := httptest.NewRequest(http.MethodPost, "/", io.NopCloser(n))
	err := ReadJSON(httptest.NewRecorder(), r, &EvictRequest{})
	wantKind(t, "endless", err, stoker.KindInvalid)
	if n.n > maxRequestBytes+64<<10 {
		t.Errorf("%d bytes were read", n.n)
	}
}

// counting is an endless body of blanks.
type counting struct{ n int }

func (c *counting) Read(b []byte) (int, error) {
	c.n += len(b)
	return copy(b, bytes.Repeat([]byte(" "), len(b))), nil
}

// follow watches a job of a controller that answers by h.
func follow(t testing.TB, ctx context.Context, h http.HandlerFunc) (states []string, last *JobStatus, err error) {
	t.Helper()
	s := httptest.NewServer(h)
	defer s.Close()
	c, err := NewController(ClientOptions{URL: s.URL, Hint: "look there"})
	if err != nil {
		t.Fatal(err)
	}
	last, err = c.Watch(ctx, "j", func(st JobStatus) { states = append(states, st.State) })
	return states, last, err
}

func jobLine(state string) Event { return Event{Job: &JobStatus{Job: "j", State: state}} }

func TestStream(t *testing.T) {
	states, last, err := follow(t, t.Context(), func(w http.ResponseWriter, _ *http.Request) {
		s := NewStream(w)
		for _, state := range []string{JobPlanned, JobWarming, JobReady} {
			if err := s.Send(jobLine(state)); err != nil {
				t.Error(err)
			}
		}
		if got := w.Header().Get("Content-Type"); got != StreamType {
			t.Errorf("content type %q", got)
		}
	})
	if err != nil || last == nil || last.State != JobReady || strings.Join(states, " ") != "Planned Warming Ready" {
		t.Errorf("%v, %v, %v", states, last, err)
	}
}

// Each line is there when Send has returned: the next waits for the client.
func TestStreamIsFlushed(t *testing.T) {
	heard := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		stream := NewStream(w)
		_ = stream.Send(jobLine(JobWarming))
		select {
		case <-heard:
			_ = stream.Send(jobLine(JobReady))
		case <-r.Context().Done():
		}
	}))
	defer s.Close()
	c, err := NewController(ClientOptions{URL: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	st, err := c.Watch(t.Context(), "j", func(st JobStatus) {
		if st.State == JobWarming {
			close(heard)
		}
	})
	if err != nil || st.State != JobReady {
		t.Errorf("%v, %v", st, err)
	}
}

// A stream that ends before its last line is an error, however it ends.
func TestBrokenStreams(t *testing.T) {
	first := func(w http.ResponseWriter) *Stream {
		s := NewStream(w)
		_ = s.Send(jobLine(JobWarming))
		return s
	}
	for name, c := range map[string]struct {
		h    http.HandlerFunc
		kind stoker.Kind
	}{
		"ends too early":   {func(w http.ResponseWriter, _ *http.Request) { first(w) }, stoker.KindTransient},
		"connection drops": {func(w http.ResponseWriter, _ *http.Request) { first(w); panic(http.ErrAbortHandler) }, stoker.KindTransient},
		"half a line": {func(w http.ResponseWriter, _ *http.Request) {
			first(w)
			_, _ = io.WriteString(w, `{"job":{"job":"j","state":"Rea`)
		}, stoker.KindTransient},
		"garbage": {func(w http.ResponseWriter, _ *http.Request) { first(w); _, _ = io.WriteString(w, "<html>\n") }, stoker.KindTransient},
		"error event": {func(w http.ResponseWriter, r *http.Request) {
			first(w).Fail(r.Context(), stoker.Errorf(stoker.KindNoSpace, "x", "", "y"))
		}, stoker.KindNoSpace},
		"error answer": {func(w http.ResponseWriter, r *http.Request) {
			NewStream(w).Fail(r.Context(), stoker.Errorf(stoker.KindHeld, "x", "", "y"))
		}, stoker.KindHeld},
	} {
		states, last, err := follow(t, t.Context(), c.h)
		wantKind(t, name, err, c.kind)
		if last != nil || name != "error answer" && len(states) != 1 {
			t.Errorf("%s: %v, %v", name, states, last)
		}
	}
}

// What follows an error or the last line is not waited for.
func TestStreamEndsWithItsLastLine(t *testing.T) {
	for name, last := range map[string]func(*Stream){
		"last":  func(s *Stream) { _ = s.Send(jobLine(JobFailed)) },
		"error": func(s *Stream) { _ = s.Send(Event{Error: &ErrorBody{Kind: "stale", Message: "x"}}) },
	} {
		_, st, err := follow(t, t.Context(), func(w http.ResponseWriter, r *http.Request) {
			last(NewStream(w))
			<-r.Context().Done()
		})
		if name == "last" && (err != nil || st.State != JobFailed) || name == "error" && stoker.KindOf(err) != stoker.KindStale {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
}

func TestCancelEndsAStream(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	_, _, err := follow(t, ctx, func(w http.ResponseWriter, r *http.Request) {
		_ = NewStream(w).Send(jobLine(JobWarming))
		cancel()
		<-r.Context().Done()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// A daemon that stops tells nobody so as if it were the answer: who follows a
// stream, or asks, sees it lost and asks the next one. An error that only looks
// like an end is told.
func TestStoppingIsNoAnswer(t *testing.T) {
	for name, answer := range map[string]func(ctx context.Context, s *Stream, err error) error{
		"stream": func(ctx context.Context, s *Stream, err error) error {
			_ = s.Send(jobLine(JobWarming))
			s.Fail(ctx, err)
			return nil
		},
		"at once": func(ctx context.Context, s *Stream, err error) error { s.Fail(ctx, err); return nil },
		"handler": func(_ context.Context, _ *Stream, err error) error { return err },
	} {
		for _, stops := range []bool{true, false} {
			_, _, err := follow(t, t.Context(), func(w http.ResponseWriter, r *http.Request) {
				ctx, cancel := context.WithCancel(r.Context())
				defer cancel()
				if stops {
					cancel()
				}
				Handler(func(w http.ResponseWriter, r *http.Request) error {
					return answer(r.Context(), NewStream(w), fmt.Errorf("asked: %w", context.Canceled))
				}).ServeHTTP(w, r.WithContext(ctx))
			})
			if Lost(err) != stops || err == nil {
				t.Errorf("%s, stops: %t: %v", name, stops, err)
			}
		}
	}
}

// Names are one segment of the path, whatever is in them.
func TestNamesInPaths(t *testing.T) {
	var got string
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/jobs/{job}", func(w http.ResponseWriter, r *http.Request) {
		got = r.PathValue("job")
		WriteJSON(w, http.StatusOK, JobStatus{Job: got})
	})
	s := httptest.NewServer(mux)
	defer s.Close()
	c, err := NewController(ClientOptions{URL: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "a b", "a/b", "../jobs", "s3://bucket/a?b=c#d@2", "%2e%2e", "é", "\xff", "a+b"} {
		if st, err := c.Job(t.Context(), name); err != nil || got != name || st == nil {
			t.Errorf("%q arrived as %q (%v)", name, got, err)
		}
	}
	for _, name := range []string{"", ".", ".."} {
		_, err := c.Job(t.Context(), name)
		wantKind(t, name, err, stoker.KindInvalid)
	}
}

// Another version of the API is refused by name, and what is no part of it as all
// errors are: whoever asked reads JSON.
func TestWhatIsNotInTheAPI(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/jobs", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	mux.HandleFunc("POST /v1/jobs", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	for ask, want := range map[string]struct {
		status     int
		kind, says string
	}{
		"GET /v1/jobs":    {http.StatusTeapot, "", ""},
		"PUT /v1/jobs":    {http.StatusMethodNotAllowed, "invalid", "there is GET, HEAD, POST"},
		"GET /v1/nothing": {http.StatusNotFound, "notexist", "is not part of this API"},
		"GET /":           {http.StatusNotFound, "notexist", "is not part of this API"},
		"GET /volumes/x":  {http.StatusNotFound, "notexist", "is not part of this API"},
		"POST /v2/jobs":   {http.StatusBadRequest, "invalid", "here is version 1 of the API"},
		"GET /v10/jobs":   {http.StatusBadRequest, "invalid", "here is version 1 of the API"},
		"GET /v2":         {http.StatusBadRequest, "invalid", "here is version 1 of the API"},
	} {
		method, path, _ := strings.Cut(ask, " ")
		rec := httptest.NewRecorder()
		Versioned(mux).ServeHTTP(rec, httptest.NewRequest(method, path, nil))
		var b ErrorBody
		if want.kind != "" {
			if err := json.Unmarshal(rec.Body.Bytes(), &b); err != nil {
				t.Errorf("%s: %v in %s", ask, err, rec.Body)
			}
		}
		if rec.Code != want.status || b.Kind != want.kind || !strings.Contains(b.Message, want.says) {
			t.Errorf("%s: %d %+v", ask, rec.Code, b)
		}
		if rec.Code == http.StatusMethodNotAllowed && rec.Header().Get("Allow") == "" {
			t.Errorf("%s: what is allowed is not said", ask)
		}
	}
}
