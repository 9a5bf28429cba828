package slurm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
)

const (
	again       = time.Second      // between tries of a controller that is away
	setupIn     = 20 * time.Second // setup waits for a controller; then stage-in goes on waiting
	releaseIn   = 20 * time.Second // likewise teardown; then the claim ends by --ttl or the reconciler
	pollIn      = 5 * time.Second  // one poll of a stage-in
	pollsALook  = 6                // polls for one look at the estimated start: a process each, so that chance decides
	maxReason   = 400              // bytes: Slurm shows it as the job's reason
	namedFailed = 3                // objects that a reason names
)

// Env is what the commands need of their program.
type Env struct {
	Controller func() (*api.Controller, error)
	Node       func() (*api.Node, error)
	Out        func() io.Writer
	Getenv     func(name string) string
	Note       func(format string, args ...any) // a message for people
}

// hooks runs one hook.
type hooks struct {
	Env
	job
	uid      int           // of the job's user; -1 = not told
	ttl      time.Duration // of the claim, unless it is repeated
	patience time.Duration // with a controller that is away, if onmiss=start
	root     string        // of the jobs' folders on every node
	polls    func(context.Context) bool
	startOf  func(ctx context.Context, id uint64) (time.Time, error) // when Slurm estimates a job to start
	userOf   func(ctx context.Context, id uint64) int                // whose it is
}

// verdict is the last word of a hook, one line on stdout that burst_buffer.lua
// reads: without it the hook has failed, whatever else it said.
func (h *hooks) verdict(err error, text string) error {
	word := "ok"
	switch {
	case errors.Is(err, errBusy):
		word, err = "busy", nil
	case err != nil:
		word, text = "error", reason(err)
	}
	if _, e := fmt.Fprintf(h.Out(), "stoker-verdict %s %s\n", word, text); e != nil && err == nil {
		err = e
	}
	return err
}

// errBusy says that the data is still on its way.
var errBusy = errors.New("busy")

// reason makes an error fit for Slurm: one line, not too long.
func reason(err error) string {
	s := strings.Join(strings.Fields(strings.TrimPrefix(err.Error(), "usage: ")), " ")
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "") + "…"
	}
	return s
}

// away reports whether an error passes when the controller is there again.
func away(err error) bool {
	k := stoker.KindOf(err)
	return err != nil && (k == stoker.KindTransient || k == stoker.KindBusy)
}

// owner is the name of the job's user, "" if it was not told.
func (h *hooks) owner() string {
	if h.uid < 0 {
		return ""
	}
	if u, err := user.LookupId(strconv.Itoa(h.uid)); err == nil {
		return u.Username
	}
	return "uid-" + strconv.Itoa(h.uid)
}

// askOwner finds the job's user in a hook that Slurm did not tell it (before 23.02 only
// setup is told): a claim that it makes first is to be that user's, too.
func (h *hooks) askOwner(ctx context.Context) {
	if h.uid < 0 {
		h.uid = h.userOf(ctx, h.id)
	}
}

// userOf asks Slurm whose a job is; -1: it does not say.
func userOf(ctx context.Context, id uint64) int {
	ctx, cancel := context.WithTimeout(ctx, pollIn)
	defer cancel()
	out, err := ask(ctx, "squeue", "--noheader", "--jobs="+strconv.FormatUint(id, 10), "--format=%U")
	if err != nil {
		return -1
	}
	return number(strings.TrimSpace(out))
}

// claim makes or repeats the job's claim.
func (h *hooks) claim(ctx context.Context, w *want) (*api.JobStatus, error) {
	return h.claimAs(ctx, w, func(*api.ClaimRequest) {})
}

// claimAs makes or repeats a claim of the job, which is its own but for what change
// changes.
func (h *hooks) claimAs(ctx context.Context, w *want, change func(*api.ClaimRequest)) (*api.JobStatus, error) {
	c, err := h.Controller()
	if err != nil {
		return nil, err
	}
	h.askOwner(ctx)
	req, err := h.job.claim(w, h.ttl, h.owner())
	if err != nil {
		return nil, err
	}
	if req.For == "" { // a claim of the hook's own might be of what the user may not read: there must be one already
		if st, err := c.Job(ctx, h.name()); err != nil || !living(st.State) {
			return nil, stoker.Errorf(stoker.KindTransient, "job", h.name(), "Slurm does not say whose it is: it is asked again")
		}
	}
	change(&req)
	st, err := c.Claim(ctx, req, nil)
	if stoker.KindOf(err) == stoker.KindDenied && strings.Contains(err.Error(), api.NotForAnother) { // the hook is no admin: then the claim is its own
		req.For = ""
		st, err = c.Claim(ctx, req, nil)
	}
	return st, err
}

// retry runs f until it answers or patience ends.
func retry(ctx context.Context, patience time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last error
	for {
		err := f(ctx)
		if ctx.Err() != nil && last != nil {
			return last // it says more than that the time is up
		}
		if !away(err) {
			return err
		}
		last = err
		select {
		case <-ctx.Done():
			return last
		case <-time.After(again):
		}
	}
}

// setup claims. What is wrong with the job is said here, whatever could be
// checked when it was submitted; a controller that is away is waited for by
// data-in.
func (h *hooks) setup(ctx context.Context) error {
	w, err := readScript(h.script)
	if err != nil {
		return h.verdict(err, "")
	}
	err = retry(ctx, min(setupIn, h.patience), func(ctx context.Context) error {
		_, err := h.claim(ctx, w)
		return err
	})
	if away(err) && ctx.Err() == nil {
		return h.verdict(nil, "not claimed yet: "+reason(err))
	}
	return h.verdict(err, "claimed as "+h.name())
}

// dataIn claims and, where Slurm does not poll, waits until the data is there.
func (h *hooks) dataIn(ctx context.Context) error {
	w, err := readScript(h.script)
	if err != nil {
		return h.verdict(err, "")
	}
	if h.polls(ctx) {
		return h.setup(ctx)
	}
	text, err := h.wait(ctx, w)
	return h.verdict(err, text)
}

// wait waits for the data as long as Slurm lets it. Only a job with onmiss=start
// starts without an answer.
func (h *hooks) wait(ctx context.Context, w *want) (text string, err error) {
	heard := time.Now()
	var p pacer
	for {
		st, err := h.claim(ctx, w)
		if err == nil {
			heard = time.Now()
			var c *api.Controller
			if c, err = h.Controller(); err == nil {
				st, err = c.Watch(ctx, h.name(), func(st api.JobStatus) {
					heard = time.Now()
					p.pace(ctx, h, c, &st)
				})
			}
		}
		switch {
		case ctx.Err() != nil:
			return "", stoker.Errorf(stoker.KindTransient, "stage-in", h.name(), "was stopped by Slurm before the data was there")
		case err == nil:
			return h.settled(st)
		case !away(err):
			return "", err
		case w.onMiss == "start" && time.Since(heard) > h.patience:
			return "starts without its data, which is read as it is needed: " + reason(err), nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(again):
		}
	}
}

// settled makes Slurm's answer of a claim that waits for nothing any more.
func (h *hooks) settled(st *api.JobStatus) (text string, err error) {
	switch st.State {
	case api.JobReady, api.JobLeased:
		return "ready", nil
	case api.JobDegraded:
		text = "its deadline has passed"
		if st.Error != nil {
			text = st.Error.Message
		}
		return "starts with " + share(st) + " of its data, the rest is read as it is needed: " + text, nil
	case api.JobFailed:
		err = st.Error.Err("job", st.Job)
		if err == nil {
			err = stoker.Errorf(stoker.KindInternal, "job", st.Job, "failed, and the controller does not say why: look into its log")
		}
		return "", named(err, st)
	}
	return "", stoker.Errorf(stoker.KindIncomplete, "job", st.Job, "its claim was cancelled: 'scontrol release %d' stages the data in again", h.id)
}

// named adds to an error which objects are missing.
func named(err error, st *api.JobStatus) error {
	var objects []string
	more := 0
	for _, d := range st.Datasets {
		if d.Certificate == nil {
			continue
		}
		for _, f := range d.Certificate.Failed {
			if len(objects) == namedFailed {
				more++
				continue
			}
			objects = append(objects, shown(f.Path)+" ("+f.Kind+")")
		}
	}
	if len(objects) == 0 {
		return err
	}
	text := strings.Join(objects, ", ")
	if more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return stoker.Errorf(stoker.KindOf(err), "not resident", text, "%w", err)
}

func share(st *api.JobStatus) string {
	if st.Bytes == 0 {
		return "0 %"
	}
	return fmt.Sprintf("%d %%", st.ResidentBytes*100/st.Bytes)
}

// testDataIn is one poll of a Slurm that polls.
func (h *hooks) testDataIn(ctx context.Context) error {
	w, err := readScript(h.script)
	if err != nil {
		return h.verdict(err, "")
	}
	var st *api.JobStatus
	err = retry(ctx, min(pollIn, h.patience), func(ctx context.Context) error {
		if _, err := h.claim(ctx, w); err != nil { // it may not have been made yet
			return err
		}
		c, err := h.Controller()
		if err == nil {
			st, err = c.Job(ctx, h.name())
		}
		if err == nil && rand.N(pollsALook) == 0 {
			(&pacer{}).pace(ctx, h, c, st)
		}
		return err
	})
	switch {
	case away(err) && w.onMiss == "start":
		return h.verdict(nil, "starts without its data, which is read as it is needed: "+reason(err))
	case away(err), err == nil && !api.Settled(st.State):
		return h.verdict(errBusy, "")
	case err != nil:
		return h.verdict(err, "")
	}
	text, err := h.settled(st)
	return h.verdict(err, text)
}

// paths writes the job's environment. It asks nobody: slurmctld waits for it.
func (h *hooks) paths(file string) error {
	w, err := readScript(h.script)
	if err == nil {
		body := "STOKER_JOB=" + h.name() + "\nSTOKER_MOUNT=" + h.layoutOf(w.datasets).mount + "\n"
		err = os.WriteFile(file, []byte(body), 0o600)
	}
	return h.verdict(err, "")
}

// preRun claims once more, now that the job has its nodes: a claim that was lost
// since is made anew, one that could not be made while the controller was away is
// made now. Data that is no longer there sends a job back that cannot start
// without. With layout=local it is copied to the nodes now.
func (h *hooks) preRun(ctx context.Context) error {
	w, err := readScript(h.script)
	if err != nil {
		return h.verdict(err, "")
	}
	if w.onMiss == "start" {
		err := retry(ctx, min(pollIn, h.patience), func(ctx context.Context) error { _, err := h.claim(ctx, w); return err })
		if err != nil {
			return h.verdict(nil, "starts without a claim: "+reason(err))
		}
		if w.layout != layoutLocal {
			return h.verdict(nil, "claimed")
		}
		text, err := h.toNodes(ctx, w)
		return h.verdict(err, text)
	}
	text, err := h.wait(ctx, w)
	if err == nil && w.layout == layoutLocal {
		text, err = h.toNodes(ctx, w)
	}
	return h.verdict(err, text)
}

// detached tells a teardown that it is the one that nobody stops.
const detached = "STOKER_SLURM_DETACHED"

// teardown ends the claim. It may come before, without and after all others. Slurm
// stops a teardown for another one, and both if the job is cancelled meanwhile: so
// a process of its own session does it, which outlives its hook. A release that
// does not arrive ends nothing in Slurm: the claim ends by itself.
func (h *hooks) teardown(ctx context.Context) error {
	if h.Getenv(detached) == "" {
		if self, err := os.Executable(); err == nil {
			cmd := exec.Command(self, os.Args[1:]...)
			cmd.Env = append(os.Environ(), detached+"=1")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			out, err := cmd.CombinedOutput()
			if _, e := h.Out().Write(out); err == nil || len(out) > 0 {
				return e
			}
		}
	}
	err := retry(ctx, releaseIn, h.release)
	if err != nil {
		h.Note("job %s: not released, its claim ends within %v or by 'stoker slurm reconcile': %v", h.name(), h.ttl, err)
		return h.verdict(nil, "not released: "+reason(err))
	}
	return h.verdict(nil, "released")
}

func (h *hooks) release(ctx context.Context) error {
	c, err := h.Controller()
	if err != nil {
		return err
	}
	var all error
	for _, name := range []string{h.name() + nodesSuffix, h.name()} {
		if at, ok := h.submitted(); ok {
			err = c.ReleaseSubmitted(ctx, name, at)
		} else {
			err = c.Release(ctx, name)
		}
		if err != nil && stoker.KindOf(err) != stoker.KindNotExist && all == nil {
			all = err
		}
	}
	return all
}

// places are where a job's datasets are on each of its nodes.
type places struct {
	folder string   // the job's own
	mount  string   // STOKER_MOUNT
	dirs   []string // of each dataset
}

// layoutOf says where the datasets go: all below the job's folder, or where
// mount= says; then a link stands there.
func (h *hooks) layoutOf(datasets []api.DatasetRef) places {
	p := places{folder: filepath.Join(h.root, strconv.FormatUint(h.id, 10))}
	p.mount = p.folder
	for _, d := range datasets {
		dir := d.Dir
		if dir == "" {
			dir = filepath.Join(p.folder, d.Name)
		}
		p.dirs = append(p.dirs, dir)
	}
	if len(p.dirs) == 1 {
		p.mount = p.dirs[0]
	}
	return p
}
