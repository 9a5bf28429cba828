package control

import (
	"context"
	"math"
	"net/http"
	"regexp"
	"slices"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
	"stoker.dev/planner/order"
	"stoker.dev/workflows"
)

const (
	minTTL   = time.Second
	maxTTL   = 30 * 24 * time.Hour
	maxGrace = 24 * time.Hour
)

// hookNonce is the nonce of a hook's claim: its repetitions have no memory to
// keep one in.
func hookNonce(req *api.ClaimRequest) string {
	if req.Submitted.IsZero() {
		return "hook"
	}
	return "hook " + req.Submitted.UTC().Format(time.RFC3339Nano)
}

// checkSampler checks the order of samples that a claim names, and writes it as all do.
func checkSampler(req *api.ClaimRequest) error {
	if req.Sampler == "" {
		return nil
	}
	s, err := order.Parse(req.Sampler)
	switch {
	case err != nil:
		return err
	case req.Preload:
		return stoker.Errorf(stoker.KindInvalid, "job", req.Job, "a preload reads nothing in an order: leave the sampler to the job's own claim")
	}
	req.Sampler = s.String()
	return nil
}

// checkTimes checks what a claim says of its own time.
func checkTimes(req *api.ClaimRequest) error {
	bad := func(format string, args ...any) error {
		return stoker.Errorf(stoker.KindInvalid, "job", req.Job, format, args...)
	}
	outside := func(v float64, least, most time.Duration) bool {
		return math.IsNaN(v) || v < least.Seconds() || v > most.Seconds()
	}
	switch {
	case req.TTLSeconds != 0 && outside(req.TTLSeconds, minTTL, maxTTL):
		return bad("to live for %v seconds: want 1 to %v", req.TTLSeconds, maxTTL.Seconds())
	case req.TTLSeconds != 0 && req.Preload:
		return bad("a preload ends when its data is there: it has no time to live")
	case req.TTLSeconds == 0 && !req.Submitted.IsZero():
		return bad("a time of submission goes with a time to live")
	case req.Submitted.After(time.Now().Add(time.Hour)):
		return bad("submitted at %s, which has not been yet", req.Submitted.Format(time.RFC3339))
	case req.GraceSeconds != nil && outside(*req.GraceSeconds, 0, maxGrace):
		return bad("a grace of %v seconds: want 0 to %v", *req.GraceSeconds, maxGrace.Seconds())
	}
	return nil
}

// userName is what principals are called: users, and uid-N.
var userName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}\$?$`)

// claimant fills in whose a claim is: the caller's, or of him for whom an admin
// makes a hook's claim. The scheduler vouches for that user.
func claimant(r *http.Request, req *api.ClaimRequest) error {
	who := api.PrincipalOf(r.Context())
	req.Owner = who.Name
	switch {
	case req.For == "" || req.For == who.Name:
		return nil
	case !who.Admin || req.TTLSeconds == 0:
		return stoker.Errorf(stoker.KindDenied, "job", req.Job, "%s %s: only a scheduler's hook that is an admin may", who.Name, api.NotForAnother)
	case !userName.MatchString(req.For):
		return stoker.Errorf(stoker.KindInvalid, "job", req.Job, "%q is no user's name", req.For)
	}
	req.Owner = req.For
	return nil
}

// grace is how long a claim's data goes last after its release.
func (c *Controller) grace(req *api.ClaimRequest) time.Duration {
	if req.GraceSeconds == nil {
		return c.o.Grace
	}
	return time.Duration(*req.GraceSeconds * float64(time.Second))
}

// standing looks for a live claim of the same job id. A hook's claim that is
// made again is found as it is, and lives on; one of a later submission ends
// that of an earlier one, whose release was lost. nil: the claim is to be made.
func (c *Controller) standing(r *http.Request, req *api.ClaimRequest) (*api.JobStatus, error) {
	there, err := c.o.Flows.JobState(r.Context(), req.Job)
	switch {
	case stoker.KindOf(err) == stoker.KindNotExist:
		return nil, nil
	case err != nil:
		return nil, err
	case there.State == api.JobReleased || there.State == api.JobFailed:
		return nil, nil
	}
	if err := mayChange(r, "job", req.Job, there.Input.Owner); err != nil {
		return nil, err
	}
	same := there.Input.Nonce == req.Nonce
	switch {
	case same && req.TTLSeconds == 0:
		return nil, nil // whoever begins it again finds it
	case same:
		return c.repeat(r.Context(), req, there)
	case req.TTLSeconds > 0 && there.Input.TTL > 0 && !req.Submitted.IsZero() && there.Input.Nonce != "hook" && req.Submitted.After(there.Input.Submitted):
		return nil, c.replace(r.Context(), there)
	}
	return nil, taken(there.Input)
}

// repeat lets a hook's claim live on.
func (c *Controller) repeat(ctx context.Context, req *api.ClaimRequest, there workflows.JobState) (*api.JobStatus, error) {
	var bad error
	same := slices.EqualFunc(there.Input.Datasets, req.Datasets, func(d workflows.JobDataset, ref api.DatasetRef) bool {
		key := ""
		if s := selectionOf(req, &ref); s != nil && bad == nil {
			key, bad = s.Key()
		}
		return d.Name == ref.Name && (ref.Generation == 0 || ref.Generation == d.Generation) && d.Select == key
	})
	if bad != nil {
		return nil, bad
	}
	if !same {
		return nil, stoker.Errorf(stoker.KindHeld, "job", req.Job, "has claimed other datasets: 'stoker release %s' first", req.Job)
	}
	err := c.o.Flows.Repeat(ctx, req.Job)
	if stoker.KindOf(err) == stoker.KindNotExist {
		return nil, nil // it has just ended
	} else if err != nil {
		return nil, err
	}
	there.Renewed = time.Now().UTC()
	return c.jobStatus(ctx, there, inBrief)
}

// replace ends the claim of an earlier submission.
func (c *Controller) replace(ctx context.Context, there workflows.JobState) error {
	job := there.Input.Job
	c.o.Log.Info("a later submission replaces this one", "job", job, "submitted", there.Input.Submitted)
	if err := c.o.Flows.Release(ctx, job); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, releaseIn)
	defer cancel()
	return c.o.Flows.Wait(ctx, job)
}

// lifetime completes what is shown of a job with when it ends.
func lifetime(st *api.JobStatus, s *workflows.JobState) {
	in := &s.Input
	switch {
	case s.State == api.JobReleased && !s.Cancelled && !in.Preload && in.Grace > 0:
		if st.GraceUntil = s.Ended.Add(in.Grace); time.Now().Before(st.GraceUntil) {
			st.State = api.JobGrace
		}
	case s.State != api.JobReleased && s.State != api.JobFailed && in.TTL > 0:
		st.ExpiresAt = s.Renewed.Add(in.TTL)
	}
}
