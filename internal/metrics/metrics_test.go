package metrics

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"stoker.dev/internal/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scraped is the answer to one scrape.
func scraped(t *testing.T, r *Registry) string {
	t.Helper()
	w := httptest.NewRecorder()
	r.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func has(t *testing.T, body, line string, want bool) {
	t.Helper()
	if got := strings.Contains("\n"+body, "\n"+line+"\n"); got != want {
		t.Errorf("%q is there: %v, want %v", line, got, want)
	}
}

func TestWhatEveryDaemonSays(t *testing.T) {
	r := New("worker", "v1.2")
	defer r.Close()
	r.Live(func(s *Samples) { s.Counter("stoker_x_total", "Help.", 7, "a", "b", "c", "d") })
	body := scraped(t, r)
	has(t, body, `stoker_x_total{a="b",c="d"} 7`, true)
	has(t, body, "# TYPE stoker_x_total counter", true)
	for _, part := range []string{`stoker_build_info{goversion="go`, `role="worker",version="v1.2"} 1`, "\ngo_goroutines ", "\nprocess_resident_memory_bytes "} {
		if !strings.Contains(body, part) {
			t.Errorf("%q is missing", part)
		}
	}
	other := New("controller", "v1.2")
	defer other.Close()
	has(t, scraped(t, other), `stoker_x_total{a="b",c="d"} 7`, false) // nothing is shared
}

// A label that cannot be shown costs its own sample alone.
func TestASampleThatIsWrong(t *testing.T) {
	r := New("worker", "")
	defer r.Close()
	r.Live(func(s *Samples) {
		s.Gauge("stoker_bad", "Help.", 1, "name", "\xff")
		s.Gauge("stoker_good", "Help.", 2)
	})
	body := scraped(t, r)
	has(t, body, "stoker_good 2", true)
	if strings.Contains(body, "stoker_bad") {
		t.Error("a label that is no UTF-8 was shown")
	}
}

// However many scrape, the question is asked once a second, and once at a time.
func TestQuestionsAreAskedOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New("worker", "")
		defer r.Close()
		var asked, together atomic.Int64
		r.Asked(5*time.Second, func(ctx context.Context, s *Samples) {
			n := asked.Add(1)
			if together.Add(1) > 1 {
				t.Error("asked twice at a time")
			}
			time.Sleep(300 * time.Millisecond)
			together.Add(-1)
			s.Gauge("stoker_n", "Help.", float64(n))
		})
		var all sync.WaitGroup
		for range maxScrapes {
			all.Go(func() { has(t, scraped(t, r), "stoker_n 1", true) })
		}
		all.Wait()
		has(t, scraped(t, r), "stoker_n 1", true)
		if asked.Load() != 1 {
			t.Errorf("asked %d times", asked.Load())
		}
		time.Sleep(askEvery)
		has(t, scraped(t, r), "stoker_n 2", true)
	})
}

// A question that hangs costs a scrape its time limit, once; what else there
// is comes all the same, and nothing old in the place of what does not.
func TestAQuestionThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New("worker", "")
		r.Live(func(s *Samples) { s.Gauge("stoker_live", "Help.", 1) })
		release := make(chan struct{})
		var asked int
		r.Asked(2*time.Second, func(ctx context.Context, s *Samples) {
			if asked++; asked == 2 {
				<-release // heeds no context, as a dead disk does not
			}
			s.Gauge("stoker_asked", "Help.", float64(asked))
		})
		has(t, scraped(t, r), "stoker_asked 1", true)
		time.Sleep(askEvery)
		for _, most := range []time.Duration{2 * time.Second, 0} {
			began := time.Now()
			body := scraped(t, r)
			if took := time.Since(began); took != most {
				t.Errorf("took %v, want %v", took, most)
			}
			has(t, body, "stoker_live 1", true)
			if strings.Contains(body, "stoker_asked") {
				t.Error("an old answer is shown as if it were new")
			}
		}
		close(release)
		synctest.Wait()
		has(t, scraped(t, r), "stoker_asked 3", true)
		r.Close()
	})
}

// Close ends a question that is under way, and none begins after it.
func TestCloseEndsQuestions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New("worker", "")
		began := time.Now()
		asked := 0
		r.Asked(time.Hour, func(ctx context.Context, _ *Samples) { asked++; <-ctx.Done() })
		done := make(chan struct{})
		go func() { defer close(done); scraped(t, r) }()
		synctest.Wait()
		r.Close()
		<-done
		time.Sleep(askEvery)
		scraped(t, r)
		if asked != 1 || time.Since(began) != askEvery {
			t.Errorf("asked %d times in %v", asked, time.Since(began))
		}
	})
}

// takesFiles is an answer that has files sent by the kernel.
type takesFiles struct {
	http.ResponseWriter
	took io.Reader
}

func (w *takesFiles) ReadFrom(r io.Reader) (int64, error) {
	w.took = r
	return 1, nil
}

// What counts requests does not keep the kernel from sending a file.
func TestTheKernelSends(t *testing.T) {
	r := New("worker", "")
	defer r.Close()
	w, file := &takesFiles{ResponseWriter: httptest.NewRecorder()}, io.LimitReader(strings.NewReader("x"), 1)
	r.Requests(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if n, err := io.Copy(w, file); n != 1 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	})).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if w.took != file {
		t.Error("it was copied")
	}
}

func TestRequestsAreCountedByRoute(t *testing.T) {
	r := New("worker", "")
	defer r.Close()
	mux := http.NewServeMux()
	step := make(chan struct{})
	mux.HandleFunc("GET /things/{name}", func(w http.ResponseWriter, req *http.Request) {
		switch req.PathValue("name") {
		case "missing":
			w.WriteHeader(http.StatusNotFound)
		case "gone":
			panic(http.ErrAbortHandler)
		case "stream":
			stream := api.NewStream(w)
			_ = stream.Send(api.Event{Listing: &api.ListProgress{Objects: 1}})
			<-step
		}
	})
	srv := httptest.NewServer(r.Requests(mux))
	defer srv.Close()
	get := func(path string) {
		t.Helper()
		once := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // it repeats nothing
		if resp, err := once.Get(srv.URL + path); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
	}
	for _, path := range []string{"/things/a", "/things/b", "/things/missing", "/things/gone", "/else", "/else/" + strings.Repeat("x", 50)} {
		get(path)
	}
	client := &http.Client{Timeout: 10 * time.Second} // a line that is kept back never comes
	resp, err := client.Get(srv.URL + "/things/stream")
	if err != nil {
		close(step)
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil || !strings.Contains(line, "listing") { // before the handler has ended
		t.Errorf("a stream's line does not come through: %q, %v", line, err)
	}
	close(step)
	_ = resp.Body.Close()
	srv.Close() // waits for the handlers
	body := scraped(t, r)
	has(t, body, `stoker_http_requests_total{code="404",method="GET",route="/things/{name}"} 1`, true)
	has(t, body, `stoker_http_requests_total{code="200",method="GET",route="/things/{name}"} 3`, true) // a, b, stream
	has(t, body, `stoker_http_requests_total{code="500",method="GET",route="/things/{name}"} 1`, true)
	has(t, body, `stoker_http_requests_total{code="404",method="none",route="none"} 2`, true)
	has(t, body, `stoker_http_request_duration_seconds_count{method="GET",route="/things/{name}"} 5`, true)
	if strings.Contains(body, "missing") || strings.Contains(body, "else") {
		t.Error("a path of a request became a label")
	}
}

// Profiles are for root and the daemon's own user, by the socket.
func TestWhoMaySeeProfiles(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc(DebugRoute, func(w http.ResponseWriter, r *http.Request) {
		if err := Debug(w, r); err != nil {
			api.WriteError(w, err)
		}
	})
	for name, c := range map[string]struct {
		p    api.Principal
		want int
	}{
		"root on the socket":       {api.Principal{Name: "root", UID: 0, Admin: true}, http.StatusOK},
		"another user":             {api.Principal{Name: "ann", UID: 1000}, http.StatusForbidden},
		"a daemon by TCP":          {api.Principal{Name: api.DaemonName, UID: -1, Admin: true}, http.StatusNotFound},
		"a named principal by TCP": {api.Principal{Name: "ann", UID: -1}, http.StatusNotFound},
		"anonymous":                {api.Principal{Name: "anonymous", UID: -1, Anonymous: true}, http.StatusNotFound},
	} {
		for _, path := range []string{"", "heap", "cmdline", "symbol", "trace?seconds=0.01", "profile?seconds=1"} {
			if strings.HasPrefix(path, "profile") && c.want == http.StatusOK {
				continue // a second each
			}
			w := httptest.NewRecorder()
			r := httptest.NewRequest(http.MethodGet, "/debug/pprof/"+path, nil)
			mux.ServeHTTP(w, r.WithContext(api.WithPrincipal(r.Context(), c.p)))
			if w.Code != c.want {
				t.Errorf("%s: %q: %d, want %d", name, path, w.Code, c.want)
			}
		}
	}
}
