package control

import (
	"context"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/ufs"
)

// server is an index that a server keeps, which has a version and a clock.
type server interface {
	Server(ctx context.Context) (version string, now time.Time, err error)
}

// askWorkers is how long all workers have for their own checks.
const askWorkers = api.CheckTimeout + 2*time.Second

// doctor is GET /v1/doctor: what this controller finds out about itself, what
// it depends on, and the workers.
func (c *Controller) doctor(w http.ResponseWriter, r *http.Request) error {
	now := time.Now().UTC()
	var own, workers []api.Check
	var both sync.WaitGroup
	both.Go(func() { own = api.Diagnose(r.Context(), api.CheckTimeout, c.probes()) })
	both.Go(func() { workers = c.checkWorkers(r.Context()) })
	both.Wait()
	api.WriteJSON(w, http.StatusOK, api.DoctorReport{Role: "controller", Time: now, Checks: append(own, workers...)})
	return nil
}

const (
	probeStore   = 20 * time.Second // for all requests to one store
	probesAtOnce = 4                // stores looked at, at a time
)

// doctorUFS is POST /v1/doctor/ufs: how a store behaves, asked with this
// controller's credentials. It makes the controller send requests to whatever
// endpoint the caller says, so that he must be somebody, and of what comes back
// he sees what a store is like, never what it holds.
func (c *Controller) doctorUFS(w http.ResponseWriter, r *http.Request) error {
	var l ufs.Location
	if err := api.ReadJSON(w, r, &l); err != nil {
		return err
	}
	if p := api.PrincipalOf(r.Context()); p.Anonymous {
		return stoker.Errorf(stoker.KindDenied, "doctor", "ufs", "nobody vouches for you: come by the controller's Unix socket, or with a token")
	}
	if err := c.mayChoose(r.Context(), &manifest.Dataset{Name: l.URI, Roots: []manifest.Root{{Location: l}}}); err != nil {
		return err
	}
	select {
	case c.probing <- struct{}{}:
		defer func() { <-c.probing }()
	default:
		return stoker.Errorf(stoker.KindBusy, "doctor", "ufs", "%d stores are looked at already: try again in some seconds", probesAtOnce)
	}
	ctx, cancel := context.WithTimeout(r.Context(), probeStore)
	defer cancel()
	found, err := c.mounts.Probe(ctx, l)
	if err != nil {
		return err
	}
	rep := api.DoctorReport{Role: "controller", Time: time.Now().UTC(), Checks: []api.Check{}}
	for _, f := range found {
		state := map[ufs.Level]string{ufs.Fine: api.CheckOK, ufs.Odd: api.CheckWarn, ufs.Bad: api.CheckFail}[f.Level]
		rep.Checks = append(rep.Checks, api.Check{Name: f.Name, State: state, Detail: f.Detail, Hint: f.Hint})
	}
	api.WriteJSON(w, http.StatusOK, rep)
	return nil
}

func (c *Controller) probes() []api.Probe {
	out := []api.Probe{
		{Name: "temporal", Hint: temporalHint, Run: c.checkTemporal},
		api.StoreProbe(c.o.Objects),
		{Name: "pins", Hint: "see that the folder or bucket of --store can be read", Run: c.checkPins},
		{Name: "folder", Hint: "its file system hangs: see dmesg", Run: func(context.Context) api.Check { return checkDir(c.o.Dir) }},
	}
	if s, ok := c.o.Index.(server); ok {
		out = append([]api.Probe{{Name: "redis", Hint: redisHint, Run: func(ctx context.Context) api.Check { return checkRedis(ctx, s) }},
			{Name: "clock", Hint: redisHint, Run: func(ctx context.Context) api.Check { return checkClock(ctx, s) }}}, out...)
	}
	return out
}

const (
	redisHint    = "start Redis, or say where it is with --redis"
	temporalHint = "start Temporal, or say where it is with --temporal; reads and mounts go on without it, new claims wait"
	slowAnswer   = 100 * time.Millisecond
	oldestRedis  = 7 // what the scripts need
)

func checkRedis(ctx context.Context, s server) api.Check {
	began := time.Now()
	version, _, err := s.Server(ctx)
	took := time.Since(began)
	if err != nil {
		return api.Fail(redisHint, "%v", err)
	}
	shown := version
	if shown == "" {
		shown = "of unknown version"
	}
	major, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(major)
	switch {
	case err == nil && n < oldestRedis:
		return api.Warn("take Redis 7.0 or newer", "version %s answers in %s", version, api.RoundTrip(took))
	case took > slowAnswer:
		return api.Warn("bring Redis nearer, or see what keeps it busy: 'redis-cli --latency'", "version %s answers in %s", shown, api.RoundTrip(took))
	}
	return api.Ok("version %s answers in %s", shown, api.RoundTrip(took))
}

// checkClock compares this clock with that of Redis, which decides who is live.
func checkClock(ctx context.Context, s server) api.Check {
	_, _, err := s.Server(ctx) // connects: what is measured below is the way alone
	before := time.Now()
	if err != nil {
		return api.Fail(redisHint, "Redis does not say what time it is: %v", err)
	}
	_, now, err := s.Server(ctx)
	after := time.Now()
	if err != nil {
		return api.Fail(redisHint, "Redis does not say what time it is: %v", err)
	}
	trip := after.Sub(before)
	return api.ClockCheck("clock of Redis", now.Sub(before.Add(trip/2)), trip/2+time.Microsecond)
}

func (c *Controller) checkTemporal(ctx context.Context) api.Check {
	began := time.Now()
	version, namespace, err := c.o.Flows.Server(ctx)
	switch {
	case stoker.KindOf(err) == stoker.KindNotExist && err != nil:
		return api.Fail("make it: 'temporal operator namespace create --namespace "+namespace+"', or name another with --namespace", "%v", err)
	case err != nil:
		return api.Fail(temporalHint, "%v", err)
	}
	if version == "" {
		version = "of unknown version"
	}
	return api.Ok("version %s, namespace %s, answers in %s", version, namespace, api.RoundTrip(time.Since(began)))
}

// checkDir makes a file where listings are made.
func checkDir(dir string) api.Check {
	f, err := os.CreateTemp(dir, ".doctor-")
	if err == nil {
		_ = os.Remove(f.Name()) // what is left is empty
		_, err = f.Write(make([]byte, 4096))
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}
	if err != nil {
		return api.Fail("see that the file system of --dir is mounted, not full and not read-only", "%s: cannot be written: %v", dir, err)
	}
	return api.Ok("%s can be written", dir)
}

// checkWorkers counts the workers and asks each live one for its own checks.
func (c *Controller) checkWorkers(ctx context.Context) []api.Check {
	ctx, cancel := context.WithTimeout(ctx, askWorkers)
	defer cancel()
	live, lost, err := c.acts.Workers(ctx)
	if err != nil {
		return []api.Check{named("workers", api.Fail(redisHint, "cannot be listed: %v", err))}
	}
	addresses := make([]string, len(live))
	for i, w := range live {
		addresses[i] = w.Address
	}
	each := make([]api.Check, len(live))
	_ = c.acts.EachWorker(ctx, addresses, func(ctx context.Context, i int, wc *api.WorkerClient) error { // what fails is its check
		each[i] = checkWorker(ctx, live[i], wc)
		return nil
	})
	return append([]api.Check{named("workers", countWorkers(live, lost))}, each...)
}

func named(name string, c api.Check) api.Check {
	c.Name = name
	return c
}

func countWorkers(live, lost []placement.Worker) api.Check {
	if why, hint := noneServes(live, lost); why != "" {
		return api.Fail(hint, "%s", why)
	}
	if len(lost) > 0 {
		ids := make([]string, len(lost))
		for i, w := range lost {
			ids[i] = short(w.ID) + " at " + w.Address
		}
		return api.Warn("look for "+strings.Join(ids[:min(len(ids), 5)], ", ")+" and start it again", "%d live, %d lost", len(live), len(lost))
	}
	return api.Ok("%d live, none lost", len(live))
}

func short(id string) string { return id[:min(len(id), 12)] }

// checkWorker sums a worker's own checks up, its clock included.
func checkWorker(ctx context.Context, w placement.Worker, wc *api.WorkerClient) api.Check {
	name := "worker-" + short(w.ID)
	before := time.Now()
	rep, err := wc.Doctor(ctx)
	if err != nil {
		return named(name, api.Fail("see on its node whether it runs, and whether its --advertise can be reached from here", "%v", err))
	}
	// When in between it read its clock is not known: checks take their time.
	trip := time.Since(before)
	clock := named("clock", api.ClockCheck("its clock", rep.Time.Sub(before.Add(trip/2)), trip/2))
	checks := append([]api.Check{clock}, rep.Checks...)
	out := api.Ok("%s: %d checks are fine", w.Address, len(checks))
	var bad []string
	for _, x := range checks {
		if x.State == api.CheckOK {
			continue
		}
		bad = append(bad, x.Name+": "+x.Detail)
		if api.WorseOf(out.State, x.State) != out.State {
			out.State, out.Hint = x.State, x.Hint
		}
	}
	if len(bad) > 0 {
		out.Detail = w.Address + ": " + strings.Join(bad, "; ")
	}
	return named(name, out)
}
