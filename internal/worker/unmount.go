package worker

import (
	"context"
	"errors"
	"time"

	"stoker.dev"
)

// afterEnd waits until a view has ended, whoever unmounted it and however long
// processes kept files of it open, and forgets it.
func (v *views) afterEnd(w *view) {
	defer close(w.gone)
	select {
	case <-w.mounted.Done():
	case <-v.stop:
		return // the process ends; what it still serves ends with it
	}
	v.ended.reads.Add(w.fs.Reads())
	v.ended.requests.Add(w.fs.Requests())
	v.letGo(w)
	if w.kernel != nil {
		w.kernel.release()
	}
	dir := w.info.Dir
	v.mu.Lock()
	if v.open[dir] == w {
		delete(v.open, dir)
		if err := v.store.DeleteState(stateName(dir)); err != nil {
			v.logOf(w.info.MountRequest).Error("a view that ended cannot be forgotten", "dir", dir, "error", err)
		}
	}
	v.mu.Unlock()
	w.endSampled()
	if err := errors.Join(v.cache.Mounted(w.info.Manifest, w.info.Dataset, -1), w.set.Close()); err != nil {
		v.logOf(w.info.MountRequest).Error("a view's data cannot be let go", "dir", dir, "error", err)
	}
}

// goneIn is how long Unmount waits until the kernel has let a view go, which takes it a
// moment, and for ever while another mount namespace has a copy.
const goneIn = time.Second / 2

// Unmount ends a view. Only its owner or root may. While a process uses it,
// that is refused; lazily the folder is freed at once and the processes keep
// what they have open. A view that is just being made is waited for. Once it has ended
// the view holds its data no more, unless a container still shows it.
func (v *views) Unmount(ctx context.Context, uid uint32, dir string, lazy bool) error {
	w, err := v.unmount(ctx, uid, dir, lazy)
	if err != nil || lazy {
		return err
	}
	late := time.NewTimer(goneIn)
	defer late.Stop()
	select {
	case <-w.gone:
	case <-late.C:
	case <-ctx.Done():
	}
	return nil
}

func (v *views) unmount(ctx context.Context, uid uint32, dir string, lazy bool) (*view, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for v.making[dir] != nil {
		made := v.making[dir]
		v.mu.Unlock()
		select {
		case <-made:
		case <-ctx.Done():
		}
		v.mu.Lock()
		if ctx.Err() != nil {
			return nil, stoker.Errorf(stoker.KindBusy, "umount", dir, "is just being mounted: try again")
		}
	}
	w := v.open[dir]
	switch {
	case w == nil:
		return nil, stoker.Errorf(stoker.KindNotExist, "umount", dir, "is no view of this node's worker")
	case uid != 0 && w.owner != uid:
		return nil, stoker.Errorf(stoker.KindDenied, "umount", dir, "was mounted by uid %d, not by you (%d)", w.owner, uid)
	}
	if err := w.mounted.Unmount(lazy); err != nil {
		return nil, err
	}
	delete(v.open, dir)
	v.logOf(w.info.MountRequest).Info("a view is unmounted", "dir", dir, "lazy", lazy)
	return w, v.store.DeleteState(stateName(dir))
}

// EndOf unmounts, lazily, the views of jobs that hold no lease any more: their
// submit was killed and could not do it.
func (v *views) EndOf(alive func(holder string) bool) {
	v.mu.Lock()
	var gone []saved
	for _, w := range v.open {
		if w.info.Holder != "" && !alive(w.info.Holder) {
			gone = append(gone, saved{MountRequest: w.info.MountRequest, Owner: w.owner})
		}
	}
	v.mu.Unlock()
	for _, r := range gone {
		v.logOf(r.MountRequest).Info("unmounting the view of a job that has ended", "dir", r.Dir)
		if err := v.Unmount(context.Background(), 0, r.Dir, true); err != nil && stoker.KindOf(err) != stoker.KindNotExist {
			v.logOf(r.MountRequest).Error("the view of an ended job cannot be unmounted", "dir", r.Dir, "error", err)
			continue
		}
		removeOwn(r.MountRequest, r.Owner)
	}
}
