package slurm

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
)

const (
	nodeIn      = 30 * time.Second // a node's worker that is just being restarted
	controlIn   = 5 * time.Second  // likewise the controller: then Slurm is asked
	unmountIn   = 3 * time.Second  // processes of the job that are just ending
	slurmIn     = 20 * time.Second
	toldIn      = 2 * time.Second // in which slurmd hears from slurmctld that a job is not to begin
	recordPerms = 0o600
)

// record is what a node remembers of the mounts of one job: epilog needs neither
// the controller nor Slurm.
type record struct {
	Folder string   `json:"folder"`
	Dirs   []string `json:"dirs"`
	Links  []string `json:"links"`
}

func (h *hooks) recordFile() string {
	return filepath.Join(h.root, "."+strconv.FormatUint(h.id, 10)+".json")
}

// prolog mounts the job's datasets on this node, as root, before the job begins.
// An error says that the node is at fault, which Slurm drains for it. A job that
// asks for what cannot be is held instead.
func (h *hooks) prolog(ctx context.Context, gid int) error {
	st, sampler, err := h.claimed(ctx)
	if err != nil || len(st) == 0 {
		return err
	}
	err = h.mountAll(ctx, st, sampler, gid)
	if err == nil {
		return nil
	}
	h.undo(ctx)
	switch stoker.KindOf(err) {
	case stoker.KindInvalid, stoker.KindNotExist, stoker.KindDenied, stoker.KindHeld, stoker.KindStale:
		return h.hold(ctx, err)
	}
	return err
}

// undo ends what a prolog that failed has begun. Slurm's epilog follows, so a worker
// that does not answer is not waited for once more.
func (h *hooks) undo(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), controlIn)
	defer cancel()
	if err := h.epilog(ctx); err != nil {
		h.Note("job %d: %v", h.id, err)
	}
}

// claimed finds what the job's claim holds, and in which order the job reads. A job without one has no directive. A
// controller that does not answer must not stop jobs without data, nor those that
// start without it: then Slurm says what the job asked for.
func (h *hooks) claimed(ctx context.Context) (datasets []api.JobDataset, sampler string, err error) {
	c, err := h.Controller()
	if err != nil {
		return nil, "", err
	}
	var st *api.JobStatus
	err = retry(ctx, controlIn, func(ctx context.Context) (err error) { st, err = c.Job(ctx, h.name()); return err })
	switch {
	case err == nil && living(st.State):
		return st.Datasets, st.Sampler, nil
	case err == nil || stoker.KindOf(err) == stoker.KindNotExist || away(err):
	default:
		return nil, "", err
	}
	if err != nil && stoker.KindOf(err) == stoker.KindNotExist {
		return nil, "", nil
	}
	w, e := h.asked(ctx)
	if e != nil || w == nil {
		return nil, "", e
	}
	for _, ref := range w.datasets {
		datasets = append(datasets, api.JobDataset{DatasetRef: ref})
	}
	return datasets, w.sampler, nil
}

// asked reads the directives of the job from Slurm; nil: it has none.
func (h *hooks) asked(ctx context.Context) (*want, error) {
	out, err := ask(ctx, "scontrol", "show", "job", strconv.FormatUint(h.id, 10))
	if err != nil {
		return nil, err
	}
	lines := bursts(out)
	if len(lines) == 0 {
		return nil, nil
	}
	return parse(lines)
}

// bursts finds the directives in what scontrol shows of a job: the first follows
// BurstBuffer=, the others stand on lines of their own.
func bursts(out string) (lines []string) {
	for _, l := range strings.Split(out, "\n") {
		l = strings.TrimPrefix(strings.TrimSpace(l), "BurstBuffer=")
		if isDirective(l) {
			lines = append(lines, l)
		}
	}
	return lines
}

// ask runs a command of Slurm.
func ask(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, slurmIn)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", stoker.Errorf(stoker.KindTransient, name+" "+args[0], "", "%w: %s", err, shown(strings.TrimSpace(stderr.String())))
	}
	return string(out), nil
}

// mountAll mounts every dataset. What it has begun stands in the record before it
// begins, so that epilog finds it.
func (h *hooks) mountAll(ctx context.Context, datasets []api.JobDataset, sampler string, gid int) error {
	refs := make([]api.DatasetRef, len(datasets))
	for i, d := range datasets {
		refs[i] = d.DatasetRef
	}
	p := h.layoutOf(refs)
	r := record{Folder: p.folder, Dirs: p.dirs}
	for i, d := range datasets {
		if d.Dir != "" {
			r.Links = append(r.Links, filepath.Join(p.folder, datasets[i].Name))
		}
	}
	if err := h.write(r); err != nil {
		return err
	}
	for i, d := range datasets {
		err := retry(ctx, nodeIn, func(ctx context.Context) error {
			if d.Dir != "" {
				return h.mountAsUser(ctx, d, sampler, gid)
			}
			return h.mount(ctx, d, p.dirs[i], sampler, gid)
		})
		if err != nil {
			return err
		}
		if d.Dir == "" {
			continue
		}
		if err := os.Symlink(d.Dir, filepath.Join(p.folder, d.Name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return stoker.Errorf(stoker.KindInternal, "prolog", p.folder, "%w", err)
		}
	}
	return nil
}

func (h *hooks) write(r record) error {
	body, err := json.Marshal(r)
	if err == nil {
		err = os.MkdirAll(r.Folder, 0o755)
	}
	if err == nil {
		err = os.WriteFile(h.recordFile(), body, recordPerms)
	}
	if err != nil {
		return stoker.Errorf(stoker.KindInternal, "prolog", r.Folder, "%w", err)
	}
	return nil
}

// mount mounts a dataset in the job's folder. Prolog may run twice.
func (h *hooks) mount(ctx context.Context, d api.JobDataset, dir, sampler string, gid int) error {
	n, err := h.Node()
	if err != nil {
		return err
	}
	there, err := n.Mounts(ctx)
	if err != nil {
		return err
	}
	for _, m := range there {
		if m.Dir == dir {
			return nil
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return stoker.Errorf(stoker.KindInternal, "prolog", dir, "%w", err)
	}
	req := api.MountRequest{Dataset: d.Name, Generation: d.Generation, Manifest: d.Manifest, Dir: dir, View: "auto"}
	req.ReadAs(sampler, d.Selection)
	req.KeepTo(d.Private)
	if d.Manifest.IsZero() { // no claim says that its user may read it
		req.For = cmp.Or(h.owner(), "nobody")
	}
	if h.uid >= 0 {
		u := uint32(h.uid)
		req.UID = &u
	}
	if gid >= 0 {
		g := uint32(gid)
		req.GID = &g
	}
	_, err = n.Mount(ctx, req)
	return err
}

// mountAsUser mounts a dataset on a folder that the job's user chose, as that
// user: root would cover any folder for him.
func (h *hooks) mountAsUser(ctx context.Context, d api.JobDataset, sampler string, gid int) error {
	if h.uid < 0 || gid < 0 {
		return stoker.Errorf(stoker.KindInvalid, "prolog", d.Dir, "SLURM_JOB_UID and SLURM_JOB_GID are not set")
	}
	self, err := os.Executable()
	if err != nil {
		return stoker.Errorf(stoker.KindInternal, "prolog", "", "%w", err)
	}
	name := d.Name
	if d.Generation != 0 {
		name += "@" + strconv.Itoa(d.Generation)
	}
	cmd := exec.CommandContext(ctx, self, append([]string{"mount", name, d.Dir}, readAs(sampler, d.Selection)...)...)
	cmd.Dir = "/"
	for _, v := range []string{"STOKER_SOCKET", "PATH"} {
		if s := h.Getenv(v); s != "" {
			cmd.Env = append(cmd.Env, v+"="+s)
		}
	}
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(h.uid), Gid: uint32(gid)}}
	}
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	kind := stoker.KindInvalid
	switch exit := (*exec.ExitError)(nil); {
	case !errors.As(err, &exit):
		kind = stoker.KindInternal
	case exit.ExitCode() == 5:
		kind = stoker.KindTransient
	case exit.ExitCode() == 1:
		kind = stoker.KindInternal
	}
	return stoker.Errorf(kind, "mount", d.Dir, "%s", strings.TrimPrefix(strings.TrimSpace(string(out)), "stoker: "))
}

// readAs are the flags of 'stoker mount' that say in which order a view is read.
func readAs(sampler string, some *api.Selection) (flags []string) {
	if sampler == "" {
		return nil
	}
	flags = []string{"--sampler=" + sampler}
	if some == nil {
		return flags
	}
	for _, list := range []struct {
		flag string
		of   []string
	}{{"--path=", some.Paths}, {"--include=", some.Include}, {"--exclude=", some.Exclude}} {
		for _, v := range list.of {
			flags = append(flags, list.flag+v)
		}
	}
	return flags
}

// hold puts the job back, held, with the reason in its comment. One of srun or
// salloc cannot be put back and is cancelled. slurmd, which begins the job once the
// prolog has ended unless it has heard of that, is given the time to hear of it.
func (h *hooks) hold(ctx context.Context, why error) error {
	err := h.sendBack(ctx, why)
	if err == nil {
		select {
		case <-ctx.Done():
		case <-time.After(toldIn):
		}
	}
	return err
}

func (h *hooks) sendBack(ctx context.Context, why error) error {
	id := strconv.FormatUint(h.id, 10)
	if _, err := ask(ctx, "scontrol", "update", "JobId="+id, "Comment=stoker: "+reason(why)); err != nil {
		h.Note("job %s: %v", id, err)
	}
	_, err := ask(ctx, "scontrol", "requeuehold", id)
	if err == nil {
		h.Note("job %s is held: %v", id, why)
		return nil
	}
	if _, e := ask(ctx, "scancel", id); e != nil {
		return errors.Join(why, err, e)
	}
	h.Note("job %s is cancelled: %v", id, why)
	return nil
}

// epilog unmounts what prolog mounted for the job on this node.
func (h *hooks) epilog(ctx context.Context) error {
	body, err := os.ReadFile(h.recordFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var r record
	if err == nil {
		err = json.Unmarshal(body, &r)
	}
	if err != nil {
		return stoker.Errorf(stoker.KindInternal, "epilog", h.recordFile(), "%w", err)
	}
	var all error
	for _, dir := range r.Dirs {
		all = errors.Join(all, h.unmount(ctx, dir))
	}
	if all != nil {
		return all
	}
	for _, l := range r.Links {
		_ = os.Remove(l) // it may never have been made
	}
	for _, dir := range r.Dirs {
		if filepath.Dir(dir) == r.Folder {
			_ = os.Remove(dir) // likewise
		}
	}
	if err := os.Remove(r.Folder); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return stoker.Errorf(stoker.KindInternal, "epilog", r.Folder, "%w", err)
	}
	return os.Remove(h.recordFile())
}

// unmount ends one view, lazily if something of the job still uses it.
func (h *hooks) unmount(ctx context.Context, dir string) error {
	n, err := h.Node()
	if err != nil {
		return err
	}
	end := time.Now().Add(unmountIn)
	return retry(ctx, nodeIn, func(ctx context.Context) error {
		err := n.Unmount(ctx, dir, time.Now().After(end))
		switch stoker.KindOf(err) {
		case stoker.KindHeld:
			return stoker.Errorf(stoker.KindBusy, "umount", dir, "%w", err)
		case stoker.KindNotExist:
			return nil
		}
		return err
	})
}
