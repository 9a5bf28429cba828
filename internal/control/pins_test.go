package control

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/workflows"
)

const bobsToken = "fedcba9876543210"

// leaseTaker is a worker that notes what it is told of leases.
type leaseTaker struct {
	mu   sync.Mutex
	told []api.LeaseRequest // +checklocks:mu

	rules []api.RulesRequest // +checklocks:mu
}

// takeLeases registers one.
func (w *watchedController) takeLeases(t *testing.T) *leaseTaker {
	t.Helper()
	l := &leaseTaker{}
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/rules" {
			var req api.RulesRequest
			if err := api.ReadJSON(rw, r, &req); err != nil {
				t.Error(err)
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			l.rules = append(l.rules, req)
			rw.WriteHeader(http.StatusNoContent)
			return
		}
		if r.URL.Path != "/v1/leases" {
			api.WriteJSON(rw, http.StatusOK, api.WorkerStatus{})
			return
		}
		var req api.LeaseRequest
		if err := api.ReadJSON(rw, r, &req); err != nil {
			t.Error(err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.told = append(l.told, req)
		rw.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(srv.Close)
	if err := w.index.Register(t.Context(), placement.Worker{ID: "worker-1", Incarnation: 1, Address: srv.URL}, time.Hour); err != nil {
		t.Fatal(err)
	}
	return l
}

// last is what it was told last, and how often it was told anything.
func (l *leaseTaker) last() (api.LeaseRequest, int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.told) == 0 {
		return api.LeaseRequest{}, 0
	}
	return l.told[len(l.told)-1], len(l.told)
}

// A pin has an owner, a reason and an end; it stands in the manifest store, and
// workers hear of it at once and with each renewal.
func TestPins(t *testing.T) {
	flows, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	worker := w.takeLeases(t)
	w.register(t, "pets", 1000, number(1))
	flows.addSet(workflows.DatasetState{Dataset: "cars", Manifest: number(2), Holders: []workflows.Holder{{Job: "j", Owner: "bob", Grace: time.Minute}}})
	p := decode[api.Pin](t, w.ask(t, watchedToken, "PUT", "/v1/datasets/pets/pin", api.PinRequest{ForSeconds: 7200, Reason: " a sweep "}))
	if p.Owner != "ann" || p.Reason != "a sweep" || p.Manifest != number(1) || p.Generation != 1 || p.Until.Sub(p.Since) != 2*time.Hour {
		t.Errorf("%+v", p)
	}
	told, n := worker.last()
	if n != 1 || !told.Partial || len(told.Leases) != 1 {
		t.Fatalf("the worker was told %+v", told)
	}
	if l := told.Leases[0]; l.Owner != "ann" || l.Reason != "a sweep" || !l.Until.Equal(p.Until) || l.EndsSeconds < 7190 || l.EndsSeconds > 7200 || !strings.Contains(l.Holder, "/") {
		t.Errorf("the lease is %+v", l)
	}
	w.renewOnce(t.Context())
	told, _ = worker.last()
	if told.Partial || len(told.Leases) != 2 || told.Leases[0].Reason != "a sweep" || told.Leases[1].Holder != "j" || told.Leases[1].GraceSeconds != 60 {
		t.Errorf("a renewal tells %+v", told)
	}
	// Again: it replaces the pin.
	again := decode[api.Pin](t, w.ask(t, watchedToken, "PUT", "/v1/datasets/pets@1/pin", api.PinRequest{ForSeconds: 60, Reason: "the rest"}))
	all := decode[[]api.DatasetInfo](t, w.ask(t, watchedToken, "GET", "/v1/datasets", nil))
	if len(all) != 1 || len(all[0].Pins) != 1 || all[0].Pins[0] != again {
		t.Errorf("the list has %+v", all)
	}
	w.ask(t, watchedToken, "POST", "/v1/datasets/pets/evict", api.EvictRequest{}).
		wantError(t, 423, "held", "the pin of ann (the rest) until "+again.Until.Format(time.RFC3339))
	w.ask(t, watchedToken, "DELETE", "/v1/datasets/pets", nil).wantError(t, 423, "held", "the pin of ann (the rest)")
	if x := w.checkPins(t.Context()); x.State != api.CheckOK || !strings.Contains(x.Detail, "1; the first to end is of pets: the pin of ann") {
		t.Errorf("the doctor says %+v", x)
	}
	w.ask(t, bobsToken, "DELETE", "/v1/datasets/pets/pin", nil).wantError(t, 403, "denied", "is pinned by ann, not by you (bob)")
	w.ask(t, bobsToken, "DELETE", "/v1/datasets/pets/pin?owner=ann", nil).wantError(t, 403, "denied", "not yours (bob)")
	ended := decode[[]api.Pin](t, w.ask(t, watchedToken, "DELETE", "/v1/datasets/pets/pin", nil))
	if told, _ = worker.last(); len(ended) != 1 || ended[0] != again || !slices.Contains(told.Drop, pinLease("pets", manifest.Pin(p), time.Now()).Holder) || !told.Partial {
		t.Errorf("%+v have ended, the worker was told %+v", ended, told)
	}
	w.ask(t, watchedToken, "DELETE", "/v1/datasets/pets/pin", nil).wantError(t, 404, "notexist", "is not pinned")
	w.renewOnce(t.Context())
	if told, _ = worker.last(); len(told.Leases) != 1 {
		t.Errorf("after unpin a renewal tells %+v", told)
	}
}

// An expired pin holds nothing, is shown nowhere, and its owner may be told so.
func TestExpiredPins(t *testing.T) {
	_, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	worker := w.takeLeases(t)
	w.register(t, "pets", 1000, number(1))
	past := time.Now().UTC().Add(-time.Second)
	err := w.manifests.ChangePins(t.Context(), "pets", func(d *manifest.DatasetPins) error {
		d.Pins = []manifest.Pin{{Owner: "ann", Generation: 1, Manifest: number(1), Reason: "x", Since: past.Add(-time.Hour), Until: past}}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	w.renewOnce(t.Context())
	if told, n := worker.last(); n != 1 || len(told.Leases) != 0 {
		t.Errorf("a renewal tells %+v", told)
	}
	if all := decode[[]api.DatasetInfo](t, w.ask(t, watchedToken, "GET", "/v1/datasets", nil)); len(all[0].Pins) != 0 {
		t.Errorf("shown: %+v", all)
	}
	if a := w.ask(t, daemonToken, "POST", "/v1/datasets/pets/evict", api.EvictRequest{}); a.status == http.StatusLocked {
		t.Errorf("eviction: %d %s", a.status, a.body)
	}
	w.ask(t, watchedToken, "DELETE", "/v1/datasets/pets/pin", nil).wantError(t, 404, "notexist", "is not pinned")
}

// While the manifest store does not say who pinned what, no lease ends.
func TestPinsThatCannotBeRead(t *testing.T) {
	flows, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	worker := w.takeLeases(t)
	flows.addSet(workflows.DatasetState{Dataset: "cars", Manifest: number(2), Holders: []workflows.Holder{{Job: "j", Owner: "bob"}}})
	if _, err := w.objects.PutIfAbsent(t.Context(), "pins/cars.json", []byte("{")); err != nil {
		t.Fatal(err)
	}
	w.renewOnce(t.Context())
	if told, _ := worker.last(); !told.Partial || len(told.Leases) != 1 {
		t.Errorf("a renewal tells %+v", told)
	}
	if x := w.checkPins(t.Context()); x.State != api.CheckFail || !strings.Contains(x.Detail, "cars") {
		t.Errorf("the doctor says %+v", x)
	}
}

func TestPinsThatAreRefused(t *testing.T) {
	_, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	w.register(t, "pets", 1000, number(1))
	for name, c := range map[string]struct {
		path   string
		req    any
		status int
		kind   string
		part   string
	}{
		"no time":      {"pets", api.PinRequest{Reason: "x"}, 400, "invalid", "more than none"},
		"negative":     {"pets", api.PinRequest{ForSeconds: -1, Reason: "x"}, 400, "invalid", "more than none"},
		"two years":    {"pets", api.PinRequest{ForSeconds: 2 * maxPin.Seconds(), Reason: "x"}, 400, "invalid", "at most a year"},
		"no reason":    {"pets", api.PinRequest{ForSeconds: 1, Reason: " \t"}, 400, "invalid", "for what reason?"},
		"two lines":    {"pets", api.PinRequest{ForSeconds: 1, Reason: "a\nb"}, 400, "invalid", "in one line"},
		"long":         {"pets", api.PinRequest{ForSeconds: 1, Reason: strings.Repeat("a", maxReason+1)}, 400, "invalid", "up to 200 bytes"},
		"unregistered": {"dogs", api.PinRequest{ForSeconds: 1, Reason: "x"}, 404, "notexist", "stoker dataset add dogs URI"},
		"generation":   {"pets@2", api.PinRequest{ForSeconds: 1, Reason: "x"}, 404, "notexist", "has no generation 2"},
		"typo":         {"pets", `{"four":1}`, 400, "invalid", "four"},
	} {
		t.Run(name, func(t *testing.T) {
			w.ask(t, watchedToken, "PUT", "/v1/datasets/"+c.path+"/pin", c.req).wantError(t, c.status, c.kind, c.part)
		})
	}
	if all, err := w.manifests.AllPins(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
}

func TestWhichEnd(t *testing.T) {
	pins := []manifest.Pin{{Owner: "ann", Generation: 1}, {Owner: "ann", Generation: 2}, {Owner: "bob", Generation: 1}}
	ann, root := api.Principal{Name: "ann"}, api.Principal{Name: "root", Admin: true}
	for name, c := range map[string]struct {
		there []manifest.Pin
		who   api.Principal
		owner string
		want  []manifest.Pin
		kind  stoker.Kind
	}{
		"own":              {pins, ann, "", pins[:2], 0},
		"own, by name":     {pins, ann, "ann", pins[:2], 0},
		"another's":        {pins, ann, "bob", nil, stoker.KindDenied},
		"not mine":         {pins[2:], ann, "", nil, stoker.KindDenied},
		"none":             {nil, ann, "", nil, stoker.KindNotExist},
		"root's own first": {append([]manifest.Pin{{Owner: "root"}}, pins...), root, "", []manifest.Pin{{Owner: "root"}}, 0},
		"root, all":        {pins, root, "", pins, 0},
		"root, one's":      {pins, root, "bob", pins[2:], 0},
		"root, nobody's":   {pins, root, "eve", nil, stoker.KindNotExist},
	} {
		got, err := whichEnd("d", c.there, c.who, c.owner)
		if !slices.Equal(got, c.want) || (err != nil) != (c.want == nil) || err != nil && stoker.KindOf(err) != c.kind {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}
