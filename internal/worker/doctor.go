package worker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/cache/store"
	"stoker.dev/fuse/hold"
	"stoker.dev/fuse/mount"
	"stoker.dev/internal/api"
)

// doctor is GET /v1/doctor: what this worker finds out about itself.
func (w *Worker) doctor(rw http.ResponseWriter, r *http.Request) error {
	api.WriteJSON(rw, http.StatusOK, api.DoctorReport{
		Role: "worker", ID: w.store.WorkerID(), Time: time.Now().UTC(),
		Checks: api.Diagnose(r.Context(), api.CheckTimeout, w.probes()),
	})
	return nil
}

func (w *Worker) probes() []api.Probe {
	return []api.Probe{
		{Name: "cache-folder", Hint: "its file system hangs: see dmesg", Run: func(context.Context) api.Check { return w.checkFolders() }},
		{Name: "cache-space", Hint: "its file system hangs: see dmesg", Run: func(context.Context) api.Check { return w.checkSpace() }},
		{Name: "memory", Run: func(context.Context) api.Check { return w.checkMemory() }},
		{Name: "descriptors", Run: func(context.Context) api.Check { return w.checkFiles() }},
		{Name: "ufs-budget", Run: func(context.Context) api.Check { return w.checkBudget() }},
		{Name: "index", Hint: redisHint, Run: w.checkIndex},
		{Name: "privilege", Run: func(context.Context) api.Check { return checkPrivilege() }},
		{Name: "kernel-view", Run: func(context.Context) api.Check { return w.checkKernelView() }},
		{Name: "restart", Run: func(context.Context) api.Check { return checkRestart(w.holder, mount.Resends()) }},
		api.StoreProbe(w.o.Objects),
	}
}

const redisHint = "start Redis, or say where it is with --redis; reads of what is resident go on without it"

// checkFolders tries every cache folder; the worst is what counts.
func (w *Worker) checkFolders() api.Check {
	var all []api.Check
	for _, f := range w.store.Folders() {
		c := checkFolder(f.Dir)
		switch f.State {
		case store.Readonly, store.Failed:
			c = api.Fail("mend or replace the disk; once it can be written again it is used again within a minute, or after a restart of the worker",
				"%s: out of service (%s) since %s: %s", f.Dir, f.State, f.Since.UTC().Format(time.RFC3339), f.Reason)
		case store.Full:
			c = api.Warn("make room on its disk, or lower its capacity", "%s: its disk is full of others' files: %s of %s can be used",
				f.Dir, api.HumanBytes(f.LimitBytes), api.HumanBytes(f.CapacityBytes))
		}
		all = append(all, c)
	}
	return worstOf(all)
}

// worstOf makes one check of several: what all say, with the state and the
// hint of the worst.
func worstOf(all []api.Check) api.Check {
	out, details := all[0], make([]string, len(all))
	for i, c := range all {
		if api.WorseOf(out.State, c.State) != out.State {
			out = c
		}
		details[i] = c.Detail
	}
	out.Detail = strings.Join(details, "; ")
	return out
}

// checkFolder writes a file that has no name: nothing stays behind, whatever
// happens. Where the file system has no such files, one with a name.
func checkFolder(dir string) api.Check {
	const hint = "see that the file system of the cache folder is mounted, not full and not read-only"
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	var f *os.File
	if err == nil {
		f = os.NewFile(uintptr(fd), dir)
	} else if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		if f, err = os.CreateTemp(dir, ".doctor-"); err == nil {
			defer os.Remove(f.Name())
		}
	}
	if err != nil {
		return api.Fail(hint, "%s: cannot be written: %v", dir, err)
	}
	began := time.Now()
	_, err = f.Write(make([]byte, 4096))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return api.Fail(hint, "%s: cannot be written: %v", dir, err)
	}
	return api.Ok("%s: written and synced in %s", dir, api.RoundTrip(time.Since(began)))
}

// checkSpace compares what the worker may still use with what the file systems
// have. Folders that share one share its space.
func (w *Worker) checkSpace() api.Check {
	type space struct {
		dirs         []string
		free, wanted int64
	}
	disks := map[unix.Fsid]*space{}
	for _, f := range w.store.Folders() {
		var fs unix.Statfs_t
		if err := unix.Statfs(f.Dir, &fs); err != nil {
			return api.Fail("see that the file system of the cache folder is mounted", "%s: %v", f.Dir, err)
		}
		d := disks[fs.Fsid]
		if d == nil {
			d = &space{free: int64(fs.Bavail) * fs.Bsize}
			disks[fs.Fsid] = d
		}
		d.dirs, d.wanted = append(d.dirs, f.Dir), d.wanted+max(0, f.LimitBytes-f.UsedBytes)
	}
	u := w.store.Usage()
	free, short, where := int64(0), int64(0), ""
	for _, d := range disks {
		free += d.free
		if d.free < d.wanted {
			short += d.wanted - d.free
			where = strings.Join(d.dirs, " and ")
		}
	}
	detail := fmt.Sprintf("%s of %s used, the file system has %s free", api.HumanBytes(u.UsedBytes), api.HumanBytes(u.CapacityBytes), api.HumanBytes(free))
	if short > 0 {
		return api.Warn("lower --capacity, or make room: loads will fail for want of space before the capacity is reached",
			"%s: %s less than --capacity promises for %s", detail, api.HumanBytes(short), where)
	}
	return api.Ok("%s", detail)
}

// checkFiles compares the limit of open files with what is open, and with what
// a full cache needs: one for each shard file.
func (w *Worker) checkFiles() api.Check {
	const hint = "raise the limit: LimitNOFILE= of its unit, or 'ulimit -n' where it is started"
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return api.Warn(hint, "the limit of open files is not known: %v", err)
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return api.Warn(hint, "the open files are not known: %v", err)
	}
	const own = 256 // sockets, mounts, manifests
	need := uint64(w.store.Usage().CapacityBytes/stoker.ExtentBytes) + own
	detail := fmt.Sprintf("%d of %d open", len(open), l.Cur)
	switch {
	case uint64(len(open))+own/4 > l.Cur:
		return api.Fail(hint, "%s: the next ones will fail", detail)
	case need > l.Cur:
		return api.Warn(hint, "%s; a full cache needs about %d", detail, need)
	}
	return api.Ok("%s", detail)
}

// checkIndex asks the index for this worker.
func (w *Worker) checkIndex(ctx context.Context) api.Check {
	began := time.Now()
	all, err := w.o.Index.Workers(ctx)
	if err != nil {
		return api.Fail(redisHint, "%v", err)
	}
	for _, x := range all {
		if x.Incarnation == w.incarnation {
			return api.Ok("answers in %s; registered, %d live in all", api.RoundTrip(time.Since(began)), len(all))
		}
	}
	return api.Warn("it registers within seconds; if not, its log says why", "answers, but does not list this worker")
}

// checkKernelView says what was found at the start.
func (w *Worker) checkKernelView() api.Check {
	if err := w.views.kernel.err; err != nil {
		return api.Ok("not here, tree views serve all: %v", err)
	}
	return api.Ok("a small one was mounted and read at the start; views are kernel views where all of the data is on this worker's disks")
}

// checkRestart says what the readers of views see of this worker's end.
func checkRestart(holder hold.Holder, resends bool) api.Check {
	who := "systemd keeps its views, if the unit has FileDescriptorStoreMax="
	switch h := holder.(type) {
	case nil:
		return api.Ok("nobody keeps its views: they are dead until it is back (let systemd start it, or see 'stokerd hold --help')")
	case *hold.Client:
		if !h.Answers() {
			return api.Warn("start 'stokerd hold', as the same user, on the socket of --holder", "its holder does not answer: views are dead when it ends, until it is back")
		}
		who = "a holder keeps its views"
	}
	if resends {
		return api.Ok("%s: over a restart or a crash who reads waits for it, and gets no error", who)
	}
	return api.Ok("%s: over a restart, for which they are drained, who reads waits; after a crash they are aborted and mounted anew (Linux before 6.9)", who)
}

const capSysAdmin = 21 // its bit in the kernel's masks

// checkPrivilege says what the worker may mount.
func checkPrivilege() api.Check {
	const hint = "start it as root, or with CAP_SYS_ADMIN (AmbientCapabilities= of its unit)"
	body, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return api.Warn(hint, "%v", err)
	}
	for line := range strings.SplitSeq(string(body), "\n") {
		var mask uint64
		if n, _ := fmt.Sscanf(line, "CapEff: %x", &mask); n == 1 {
			if mask&(1<<capSysAdmin) != 0 {
				return api.Ok("uid %d with CAP_SYS_ADMIN: may mount", os.Geteuid())
			}
			return api.Warn(hint, "uid %d without CAP_SYS_ADMIN: mounts need fusermount3, and only their owner sees them", os.Geteuid())
		}
	}
	return api.Warn(hint, "its capabilities are not known")
}
