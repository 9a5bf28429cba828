package worker

import (
	"stoker.dev"
	"stoker.dev/fuse/tree"
	"stoker.dev/internal/api"
	"stoker.dev/planner/order"
)

// samplerOf reads the order in which a view is read, and of which files it is that;
// nil: of all.
func samplerOf(r *api.MountRequest) (s order.Sampler, some *api.Selector, err error) {
	if r.Sampler == "" {
		if r.Selection != nil {
			err = stoker.Errorf(stoker.KindInvalid, "mount", r.Dir, "a view shows all of a dataset: a selection goes with a sampler, and says which files that is for")
		}
		return s, nil, err
	}
	if s, err = order.Parse(r.Sampler); err == nil && r.Selection != nil && !r.Selection.Empty() {
		_, err = r.Selection.Key()
		some = r.Selection.Selector()
	}
	return s, some, err
}

// sample follows the order in which a view is read, if that is known.
func (v *views) sample(w *view) {
	r := w.info.MountRequest
	s, some, err := samplerOf(&r)
	switch {
	case err != nil: // a later release has written it down
		v.logOf(r).Warn("the order in which a view is read is not known here", "dir", r.Dir, "error", err)
	case r.Sampler != "":
		w.sampled = w.set.Sampled(s, some)
	}
}

func (w *view) endSampled() {
	if w.sampled != nil {
		w.sampled.Close()
	}
}

// reader is what a view reads with.
func (w *view) reader() tree.Reader {
	if w.sampled != nil {
		return w.sampled
	}
	return w.set
}
