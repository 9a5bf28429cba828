package worker

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"

	"stoker.dev"
	"stoker.dev/fuse/erofs"
	"stoker.dev/fuse/mount"
	"stoker.dev/internal/api"
)

// heldState begins the names of documents about views whose descriptors a
// holder keeps, for as long as anything of them is open.
const heldState = "held-"

// heldFormat is the format of these documents, and the meaning of the node ids
// that the kernel has of a view: another one is not taken over.
const heldFormat = 1

// heldView is what the next life must know of a view.
type heldView struct {
	Format int           `json:"format"`
	Info   api.MountInfo `json:"info"`
	Owner  uint32        `json:"owner"`
	Handle mount.Handle  `json:"handle"`

	// Of a kernel view: its image, and which shards are local devices. The kernel has
	// these files open.
	Image      string `json:"image,omitempty"`
	ImageBytes int64  `json:"imageBytes,omitempty"`
	Local      bits   `json:"local,omitempty"`
}

// hold hands a view's descriptor to the holder, so that its readers wait for the
// next life if this one is killed. A view that cannot be held is one that dies
// with its worker.
func (v *views) hold(w *view) {
	if w.held == "" {
		return
	}
	log := v.logOf(w.info.MountRequest)
	if err := v.note(w); err != nil {
		log.Error("a view dies with this worker: it cannot be written down", "dir", w.info.Dir, "error", err)
		return
	}
	v.mu.Lock()
	v.held[w.held] = w
	v.mu.Unlock()
	dev, err := w.mounted.Dup()
	if err == nil {
		err = errors.Join(v.holder.Put(w.held, dev), dev.Close())
	}
	if err != nil { // if there is no holder now, the next one gets it
		log.Warn("a view is not held", "dir", w.info.Dir, "error", err)
	}
}

// note writes down what the next life must know of a view as it is now. It is the
// process that may end, not the machine, which takes all mounts with it: no disk is
// waited for.
func (v *views) note(w *view) error {
	doc := heldView{Format: heldFormat, Info: w.info, Owner: w.owner, Handle: w.mounted.Handle()}
	if k := w.kernel; k != nil {
		doc.Image, doc.ImageBytes, doc.Local = k.image, k.bytes, k.local
	}
	return v.putHeld(w.held, doc)
}

func (v *views) putHeld(name string, doc heldView) error {
	body, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	return v.store.PutNote(heldState+name, body)
}

// letGo ends what the holder has of a view.
func (v *views) letGo(w *view) {
	v.mu.Lock()
	held := v.held[w.held] == w
	if held {
		delete(v.held, w.held)
	}
	v.mu.Unlock()
	if !held {
		return
	}
	if err := v.forget(w.held); err != nil {
		v.logOf(w.info.MountRequest).Warn("the holder keeps a descriptor of a view that has ended", "dir", w.info.Dir, "error", err)
	}
}

// forget drops a descriptor and its document. Of a view that is not served, that
// aborts its mount.
func (v *views) forget(name string) error {
	return errors.Join(v.holder.Drop(name), v.store.DeleteState(heldState+name))
}

// takeOver goes on with the views that the holder kept of the last life. What
// cannot be is let go of, so that its readers get an error.
func (v *views) takeOver(ctx context.Context) {
	if v.holder == nil {
		return
	}
	kept := v.holder.Taken()
	names, err := v.store.ListState(heldState)
	if err != nil {
		v.log.Error("views of the last life cannot be read", "error", err)
	}
	for _, name := range names {
		name = strings.TrimPrefix(name, heldState)
		dev := kept[name]
		delete(kept, name)
		doc, err := v.heldView(name)
		if err == nil && dev != nil {
			err = v.resume(ctx, name, doc, dev)
		}
		if err == nil && dev != nil {
			continue
		}
		log := v.logOf(doc.Info.MountRequest)
		if dev != nil {
			mount.Abort(dev, doc.Handle)
			log.Error("a view of the last life is aborted: it cannot be taken over", "dir", doc.Info.Dir, "error", err)
		}
		if err := v.forget(name); err != nil {
			log.Warn("the holder keeps a descriptor of a view that has ended", "dir", doc.Info.Dir, "error", err)
		}
	}
	for name, dev := range kept { // handed over, and not written down any more
		_ = dev.Close()
		if err := v.holder.Drop(name); err != nil {
			v.log.Warn("the holder keeps a descriptor that nobody knows", "name", name, "error", err)
		}
	}
}

func (v *views) heldView(name string) (doc heldView, err error) {
	body, err := v.store.GetState(heldState + name)
	if err != nil {
		return doc, err
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return doc, stoker.Errorf(stoker.KindCorrupt, "takeover", name, "what is written of it: %w", err)
	}
	if doc.Format != heldFormat {
		return doc, stoker.Errorf(stoker.KindInvalid, "takeover", doc.Info.Dir, "was mounted by another release: format %d, this one has %d", doc.Format, heldFormat)
	}
	return doc, nil
}

// resume takes one view over.
func (v *views) resume(ctx context.Context, name string, doc heldView, dev *os.File) error {
	dir := doc.Info.Dir
	shown, err := doc.Handle.Mounted()
	if err != nil {
		return err
	}
	if doc.Handle.Drained { // from here on it is not; that of the last life still counts below
		begun := doc
		begun.Handle.Drained = false
		if err := v.putHeld(name, begun); err != nil {
			return err
		}
	}
	set, err := v.cache.Open(ctx, doc.Info.Manifest)
	if err != nil {
		return err
	}
	if err := v.cache.Mounted(doc.Info.Manifest, doc.Info.Dataset, 1); err != nil {
		return errors.Join(err, set.Close())
	}
	w := &view{info: doc.Info, owner: doc.Owner, set: set, held: name, gone: make(chan struct{})}
	v.sample(w)
	if doc.Handle.Kernel {
		w.kernel = v.heldKernel(w, doc)
		w.fs = w.kernel.fs
		w.mounted, err = mount.TakeOver(w.kernel.fs, dev, doc.Handle)
	} else {
		fs := v.treeOf(w)
		w.fs = fs
		w.mounted, err = mount.TakeOver(fs, dev, doc.Handle)
	}
	// Else it was unmounted, and some process has files of it open.
	ours := shown && v.savedAs(dir) == name
	if w.mounted == nil {
		if w.kernel != nil {
			w.kernel.release()
		}
		w.endSampled()
		return errors.Join(err, v.cache.Mounted(doc.Info.Manifest, doc.Info.Dataset, -1), set.Close())
	}
	v.mu.Lock()
	v.held[name] = w
	if ours {
		v.open[dir] = w
	}
	v.mu.Unlock()
	v.logOf(w.info.MountRequest).Info("a view of the last life goes on", "dir", dir, "view", w.info.View, "mounted", ours)
	v.serving.Go(func() { v.afterEnd(w) })
	return nil
}

// heldKernel is what a kernel view of the last life holds: its image, and the
// files of its shards, also those that the store has no more.
func (v *views) heldKernel(w *view, doc heldView) *kernelView {
	k := &kernelView{store: v.store, image: doc.Image, bytes: doc.ImageBytes, local: doc.Local, fs: v.shardsOf(w)}
	bytes := doc.ImageBytes
	for n := range w.set.Manifest().Shards() {
		if !k.local.has(n) {
			continue
		}
		s := w.set.Manifest().Shard(uint32(n))
		if sh, ok := v.store.Get(s.ID); ok {
			k.shards = append(k.shards, sh)
		} else {
			bytes += erofs.DeviceBytes(s)
		}
	}
	if err := v.store.Reserve(k.image, bytes); err != nil {
		v.logOf(w.info.MountRequest).Error("a view's image takes space that is not counted", "dir", doc.Info.Dir, "bytes", bytes, "error", err)
	}
	return k
}

// savedAs is the name at the holder of the view that is to be mounted on a folder.
func (v *views) savedAs(dir string) string {
	var s saved
	body, err := v.store.GetState(stateName(dir))
	if err != nil || json.Unmarshal(body, &s) != nil {
		return ""
	}
	return s.Held
}

// serves reports whether a mount of the last life is one that this one goes on with.
func (v *views) serves(l mount.Left) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, w := range v.held {
		if l.Is(w.mounted) {
			return true
		}
	}
	return false
}

// stands reports whether a saved view is mounted already.
func (v *views) stands(s saved) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	w := v.open[s.Dir]
	return w != nil && w.held == s.Held && s.Held != ""
}
