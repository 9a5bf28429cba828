package worker

import (
	"context"
	"errors"
	"time"

	"stoker.dev/fuse/mount"
)

// How long the end of a worker waits for the answers of views whose kernel is
// older than 6.9: then READs that wait fail, which takes them no time. It is less
// than the 10 s that containers have to stop.
const (
	drainWithin  = 5 * time.Second
	giveUpWithin = 2 * time.Second
)

// handOver answers what was read of some views, and reads no more, so that the next
// life can go on with them though the kernel does not resend. A view that is not
// drained in time is ended: its readers get an error at once, and not never.
func (v *views) handOver(all []*view) {
	if len(all) == 0 {
		return
	}
	var mounts []*mount.Mounted
	for _, w := range all {
		mounts = append(mounts, w.mounted)
	}
	began := time.Now()
	err := drainFor(drainWithin, mounts)
	if errors.Is(err, context.DeadlineExceeded) {
		for _, w := range all {
			if !w.mounted.Handle().Drained {
				v.logOf(w.info.MountRequest).Warn("reads of a view that wait for their data are given up: this worker ends", "dir", w.info.Dir, "waited", drainWithin)
			}
		}
		v.giveUp()
		err = drainFor(giveUpWithin, mounts)
	}
	for _, w := range all {
		v.leave(w, time.Since(began), err)
	}
}

// leave writes down that a view is drained, or ends it.
func (v *views) leave(w *view, after time.Duration, err error) {
	log := v.logOf(w.info.MountRequest)
	select {
	case <-w.mounted.Done(): // unmounted meanwhile
		return
	default:
	}
	if w.mounted.Handle().Drained {
		if err = v.note(w); err == nil {
			log.Info("a view is drained", "dir", w.info.Dir, "after", after)
			return
		}
	}
	log.Error("a view is aborted: it could not be drained, and the kernel is older than 6.9", "dir", w.info.Dir, "error", err)
	if err := v.forget(w.held); err != nil {
		log.Warn("the holder keeps a descriptor of a view that has ended", "dir", w.info.Dir, "error", err)
	}
}

func drainFor(most time.Duration, mounts []*mount.Mounted) error {
	ctx, cancel := context.WithTimeout(context.Background(), most)
	defer cancel()
	return mount.Drain(ctx, mounts)
}
