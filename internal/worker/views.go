package worker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/cache"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/store"
	"stoker.dev/fuse/erofs"
	"stoker.dev/fuse/hold"
	"stoker.dev/fuse/mount"
	"stoker.dev/fuse/tree"
	"stoker.dev/internal/api"
)

const viewState = "view-"

// readAtMount is how much of a dataset a mount reads that nobody has read since
// the worker started, so that auto may give a kernel view: a moment's work.
const readAtMount = 256 << 20

// views are the node's mounts. What is mounted stands on disk too, so that
// the next life of the worker mounts it again.
type views struct {
	cache     *cache.Cache
	manifests *manifest.Store
	store     *store.Store
	kernel    *kernel
	holder    hold.Holder // of the mounts' descriptors; nil = mounts die with this life
	source    string      // first part of the mounts' source, this worker's alone
	log       *slog.Logger

	mu     sync.Mutex
	open   map[string]*view         // +checklocks:mu — by folder
	making map[string]chan struct{} // +checklocks:mu — by folder; closed once the view stands, or cannot
	held   map[string]*view         // +checklocks:mu — by the name that the holder knows; also those that no folder shows any more

	deadline time.Duration      // of one READ of a view; 0 = fuse.DefaultDeadline
	answers  context.Context    // READs that wait fail when it ends
	giveUp   context.CancelFunc // ends answers

	ended struct { // READs, and requests of any kind, that asked the worker, of views that have ended
		reads, requests atomic.Int64
	}

	stop    chan struct{} // closed when the process ends
	serving sync.WaitGroup
}

// requests are those of the kernel to one view's file system: READs, and of any kind.
type requests interface {
	Reads() int64
	Requests() int64
}

type view struct {
	info    api.MountInfo
	owner   uint32 // uid that asked for it
	set     *cache.Set
	sampled *cache.Sampled // nil: in what order it is read is not known
	mounted *mount.Mounted
	fs      requests
	kernel  *kernelView   // nil: a tree view
	held    string        // the name of its descriptor at the holder; "" = without one
	gone    chan struct{} // closed when nothing holds its data for it any more
}

// saved is a view's document on disk.
type saved struct {
	api.MountRequest
	Owner uint32 `json:"owner"`
	choice
	Held string `json:"held,omitempty"` // the name of its descriptor at the holder
}

// choice is the kind of a view, and why it is that. It is made once: later lives
// of the worker keep to it, for the job has seen how its view behaves.
type choice struct {
	Kind string `json:"kind,omitempty"` // tree or kernel; "" = not chosen yet
	Why  string `json:"why,omitempty"`
}

func stateName(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return viewState + hex.EncodeToString(sum[:16])
}

// Mount makes a view of a dataset. The caller with this uid must own the
// folder, or be root. If ctx ends before the view stands, nothing of it stays:
// its caller has gone.
func (v *views) Mount(ctx context.Context, uid uint32, r api.MountRequest) (api.MountInfo, error) {
	if err := v.check(uid, &r); err != nil {
		return api.MountInfo{}, err
	}
	d, listed, err := v.resolve(ctx, &r)
	if err == nil {
		err = v.mayRead(ctx, uid, &r, d)
	}
	if err != nil {
		return api.MountInfo{}, err
	}
	return v.mount(ctx, saved{MountRequest: r, Owner: uid}, listed, nil)
}

// mount is Mount of what was found and may be read, on a folder that a view of the last
// life may still lie on.
func (v *views) mount(ctx context.Context, want saved, listed time.Time, old *mount.Left) (api.MountInfo, error) {
	uid, r := want.Owner, want.MountRequest
	if err := v.claimDir(r.Dir); err != nil {
		return api.MountInfo{}, err
	}
	w, err := v.make(ctx, saved{MountRequest: r, Owner: uid, choice: want.choice}, old)
	v.mu.Lock()
	close(v.making[r.Dir])
	delete(v.making, r.Dir)
	if err != nil {
		v.mu.Unlock()
		return api.MountInfo{}, err
	}
	w.info.ListedAt = listed
	v.open[r.Dir] = w
	v.mu.Unlock()
	v.logOf(r).Info("a view is mounted", "dir", r.Dir, "uid", uid, "view", w.info.View, "why", w.info.Why)
	if ctx.Err() != nil {
		return api.MountInfo{}, errors.Join(ctx.Err(), v.Unmount(context.WithoutCancel(ctx), uid, r.Dir, true))
	}
	return w.info, nil
}

// logOf is the log for lines about one view.
func (v *views) logOf(r api.MountRequest) *slog.Logger {
	log := v.log.With("dataset", r.Dataset, "manifest", r.Manifest.Short())
	if r.Holder != "" {
		log = log.With("job", r.Holder)
	}
	return log
}

// claimDir takes the folder's place in the table, or says that it is taken.
func (v *views) claimDir(dir string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.open[dir] != nil || v.making[dir] != nil {
		return stoker.Errorf(stoker.KindHeld, "mount", dir, "there is a view already; stoker umount it first")
	}
	v.making[dir] = make(chan struct{})
	return nil
}

// check refuses what the caller may not ask for.
func (v *views) check(uid uint32, r *api.MountRequest) error {
	if !slices.Contains([]string{"", "auto", "tree", "kernel"}, r.View) {
		return stoker.Errorf(stoker.KindInvalid, "mount", r.Dir, "view %q: want auto, tree or kernel", r.View)
	}
	if uid != 0 && r.UID != nil && *r.UID != uid {
		return stoker.Errorf(stoker.KindDenied, "mount", r.Dir, "only root may give files to another uid (%d)", *r.UID)
	}
	if n := r.KernelReadAheadBytes; n != nil && (*n < 0 || *n > api.MostKernelReadAhead) {
		return stoker.Errorf(stoker.KindInvalid, "mount", r.Dir, "%d bytes to read ahead: want 0 to %d", *n, api.MostKernelReadAhead)
	}
	_, _, err := samplerOf(r)
	return err
}

// ownedBy lets only the folder's owner, or root, mount on it.
func ownedBy(uid uint32, dir string) func(*unix.Stat_t) error {
	return func(st *unix.Stat_t) error {
		if uid != 0 && st.Uid != uid {
			return stoker.Errorf(stoker.KindDenied, "mount", dir, "belongs to uid %d, not to you (%d)", st.Uid, uid)
		}
		return nil
	}
}

// resolve finds the manifest of a dataset that is named only, and its entry.
func (v *views) resolve(ctx context.Context, r *api.MountRequest) (d *manifest.Dataset, listed time.Time, err error) {
	if !r.Manifest.IsZero() {
		return nil, listed, nil
	}
	d, _, err = v.manifests.Dataset(ctx, r.Dataset)
	if k := stoker.KindOf(err); err != nil && (k == stoker.KindNotExist || k == stoker.KindInvalid) {
		return nil, listed, stoker.Errorf(stoker.KindNotExist, "mount", r.Dataset, "is not registered: 'stoker dataset add NAME URI' does that")
	} else if err != nil {
		return nil, listed, err
	}
	g := d.Current()
	if r.Generation != 0 {
		var ok bool
		if g, ok = d.Find(r.Generation); !ok {
			return nil, listed, stoker.Errorf(stoker.KindNotExist, "mount", r.Dataset, "no generation %d; the current one is %d", r.Generation, d.Current().Number)
		}
	}
	r.Manifest, r.Generation = g.Manifest, g.Number
	return d, g.ListedAt, nil
}

// make opens the dataset and mounts it.
func (v *views) make(ctx context.Context, want saved, old *mount.Left) (*view, error) {
	r := want.MountRequest
	set, err := v.cache.Open(ctx, r.Manifest)
	if err != nil {
		return nil, err
	}
	// Held and written down before it is seen: a crash leaves no mount that
	// the next life does not know of.
	if err := v.cache.Mounted(r.Manifest, r.Dataset, 1); err != nil {
		_ = set.Close()
		return nil, err
	}
	undo := func(err error) (*view, error) {
		_ = v.store.DeleteState(stateName(r.Dir)) // the next life finds the folder unusable and forgets it
		return nil, errors.Join(err, v.cache.Mounted(r.Manifest, r.Dataset, -1), set.Close())
	}
	if want.Kind == "" {
		if want.choice, err = v.choose(ctx, r.View, set); err != nil {
			return undo(err)
		}
	}
	if v.holder != nil {
		want.Held = stoker.NewToken()
	}
	if err := v.save(want); err != nil {
		return undo(err)
	}
	w := &view{info: api.MountInfo{MountRequest: r, State: "mounted"}, owner: want.Owner, set: set, held: want.Held, gone: make(chan struct{})}
	v.sample(w)
	if err := v.show(ctx, w, want, old); err != nil {
		w.endSampled()
		return undo(err)
	}
	v.hold(w)
	set.Greet()
	v.serving.Go(func() { v.afterEnd(w) })
	return w, nil
}

func (v *views) save(s saved) error {
	body, err := json.Marshal(s)
	if err != nil {
		return stoker.Errorf(stoker.KindInternal, "mount", s.Dir, "%w", err)
	}
	return v.store.PutState(stateName(s.Dir), body)
}

// choose takes the kind that was asked for. With auto that is a kernel view
// only of what is here as a whole: what is not it reads through the worker, in
// order at half the speed of a tree view, and of what nobody has read since the
// worker started the disk may have anything, which the kernel would not notice.
func (v *views) choose(ctx context.Context, asked string, set *cache.Set) (choice, error) {
	if asked == "tree" || asked == "kernel" {
		return choice{asked, "asked for"}, nil
	}
	if err := v.kernel.err; err != nil {
		return choice{"tree", "there are no kernel views here: " + err.Error()}, nil
	}
	why, err := set.Local(ctx, readAtMount)
	if err != nil {
		return choice{}, err
	}
	if why != "" {
		return choice{"tree", why}, nil
	}
	return choice{"kernel", "all of it is on this worker's disks, and was read or written since it started"}, nil
}

// show mounts the kind of view that was chosen, or, where auto chose a kernel
// view that cannot be made, a tree view.
func (v *views) show(ctx context.Context, w *view, want saved, old *mount.Left) error {
	r, owner := want.MountRequest, w.shownAs()
	o := mount.Options{Dir: r.Dir, Name: v.source + ":" + r.Dataset, Check: ownedBy(w.owner, r.Dir)}
	if n := r.KernelReadAheadBytes; n != nil {
		o.ReadAheadBytes = int(max(1, *n))
	}
	if want.Kind == "kernel" {
		k, err := v.mountKernel(ctx, w, owner, o, old)
		if err == nil {
			w.info.View, w.info.Why = want.Kind, want.Why
			w.mounted, w.fs, w.kernel = k.mounted, k.fs, k
			return nil
		}
		if r.View == "kernel" || ctx.Err() != nil {
			return err
		}
		want.choice = choice{"tree", "no kernel view can be made of it: " + err.Error()}
		if err := v.save(want); err != nil {
			return err
		}
	}
	if old != nil { // there is nothing to go beneath: the folder is empty for a moment
		if err := old.Unmount(); err != nil {
			return err
		}
	}
	fs := v.treeOf(w)
	m, err := mount.Mount(fs, o)
	w.info.View, w.info.Why = want.Kind, want.Why
	w.mounted, w.fs = m, fs
	return err
}

// treeOf makes the file system of a tree view.
func (v *views) treeOf(w *view) *tree.FS {
	as := w.shownAs()
	return tree.New(tree.Options{Manifest: w.set.Manifest(), Reader: w.reader(), UID: as.UID, GID: as.GID, Umask: as.Umask, Deadline: v.deadline, Until: v.answers, Log: v.logOf(w.info.MountRequest)})
}

// shownAs says to whom the view's files belong, and who may read them.
func (w *view) shownAs() erofs.Options {
	as, r := erofs.Options{UID: w.owner, Umask: 0o022}, w.info.MountRequest
	if r.UID != nil {
		as.UID = *r.UID
	}
	as.GID = as.UID
	if r.GID != nil {
		as.GID = *r.GID
	}
	if r.Umask != nil {
		as.Umask = *r.Umask
	}
	return as
}

// List returns the mounted views, and how many reads of all that were mounted reached user
// space.
func (v *views) List() ([]api.MountInfo, int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := []api.MountInfo{}
	reads := v.ended.reads.Load()
	for _, w := range v.open {
		out = append(out, w.info)
		reads += w.fs.Reads()
	}
	slices.SortFunc(out, func(a, b api.MountInfo) int { return strings.Compare(a.Dir, b.Dir) })
	return out, reads
}

// requests is how many requests of any kind, of all views that were mounted, reached
// user space.
func (v *views) requests() int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := v.ended.requests.Load()
	for _, w := range v.open {
		n += w.fs.Requests()
	}
	return n
}

// restore goes on with the views of the last life. What its holder kept is
// taken over, the others are made anew, and what it left is cleared. Of a
// kernel view, what is local can be read all the while: the new one comes up
// beneath it.
func (v *views) restore(ctx context.Context) {
	v.takeOver(ctx)
	left, err := mount.Leftovers(v.source)
	if err != nil {
		v.log.Error("dead mounts could not be listed", "error", err)
	}
	alive := map[string]*mount.Left{}
	for _, l := range left {
		if v.serves(l) {
			continue
		}
		if l.Alive && alive[l.Dir] == nil {
			alive[l.Dir] = &l
		} else if err := l.Unmount(); err != nil {
			v.log.Error("dead mounts could not be cleared", "dir", l.Dir, "error", err)
		}
	}
	names, err := v.store.ListState(viewState)
	if err != nil {
		v.log.Error("views of the last life cannot be read", "error", err)
	}
	for _, name := range names {
		var s saved
		body, err := v.store.GetState(name)
		if err == nil {
			err = json.Unmarshal(body, &s)
		}
		if err == nil && v.stands(s) {
			continue
		}
		if err == nil {
			old := alive[s.Dir]
			_, err = v.mount(ctx, s, time.Time{}, old)
			if err == nil || stoker.KindOf(err) != stoker.KindHeld {
				delete(alive, s.Dir)
			}
			if err != nil && old != nil {
				_ = old.Unmount() // unless it has gone already
			}
		}
		if err != nil {
			v.logOf(s.MountRequest).Error("a view of the last life is not mounted again", "dir", s.Dir, "error", err)
			_ = v.store.DeleteState(name)
		}
	}
	for dir, l := range alive {
		if err := l.Unmount(); err != nil {
			v.log.Error("dead mounts could not be cleared", "dir", dir, "error", err)
		}
	}
}

// Close leaves what a holder keeps: who reads waits for the next life; before Linux
// 6.9 it is drained first. Of the others it unmounts what nobody uses. The views of jobs, and those with open
// files, stay where they are, dead: a job that looks gets an error until the
// worker's next life mounts them again, never an empty folder.
func (v *views) Close() {
	v.mu.Lock()
	var ending, draining []*view
	for _, w := range v.held {
		if w.mounted.Handle().Resends() {
			w.mounted.Leave()
		} else {
			draining = append(draining, w)
		}
	}
	for dir, w := range v.open {
		if v.held[w.held] != nil {
			continue
		}
		if w.info.Holder != "" {
			v.logOf(w.info.MountRequest).Warn("a job's view stays, dead, until it is mounted anew", "dir", dir)
			continue
		}
		switch err := w.mounted.Unmount(false); {
		case stoker.KindOf(err) == stoker.KindHeld:
			v.logOf(w.info.MountRequest).Warn("a view is in use and stays, dead, until it is mounted anew", "dir", dir)
		case err != nil:
			v.logOf(w.info.MountRequest).Error("a view could not be unmounted", "dir", dir, "error", err)
		default:
			ending = append(ending, w)
		}
	}
	clear(v.open)
	v.mu.Unlock()
	v.handOver(draining)
	patience := time.After(2 * time.Second)
	for _, w := range ending {
		select {
		case <-w.mounted.Done():
		case <-patience:
			v.logOf(w.info.MountRequest).Warn("a view does not end", "dir", w.info.Dir)
		}
	}
	close(v.stop)
	v.serving.Wait()
}
