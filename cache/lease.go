package cache

import (
	"time"

	"stoker.dev/cache/store"
	"stoker.dev/internal/api"
)

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// expired reports whether the lease has ended by itself.
func (l *lease) expired() bool {
	return l.EndsSeconds > 0 && now().Sub(l.renewed) >= seconds(l.EndsSeconds)
}

// String names the holder for people.
func (l *lease) String() string {
	if l.Reason == "" {
		return "job " + l.Holder
	}
	return api.PinHolder(l.Owner, l.Reason, l.Until)
}

// graceLocked notes that a lease has ended just now.
func (h *holds) graceLocked(st *store.Store, l *lease) error {
	k := h.known[l.Manifest]
	if k == nil {
		return nil
	}
	k.LastUsed = now()
	if until := k.LastUsed.Add(seconds(l.GraceSeconds)); until.After(k.GraceUntil) {
		k.GraceUntil = until
	}
	return h.saveLocked(st, k)
}
