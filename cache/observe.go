package cache

import (
	"log/slog"

	"stoker.dev"
)

// Running counts what is under way: loads of parts of plans, and flights that
// bring in blocks.
func (c *Cache) Running() (loads, flights int) {
	c.loads.mu.Lock()
	for _, l := range c.loads.all {
		select {
		case <-l.done:
		default:
			loads++
		}
	}
	c.loads.mu.Unlock()
	c.fills.mu.Lock()
	defer c.fills.mu.Unlock()
	for _, of := range c.fills.runs {
		for _, f := range of {
			if !f.ended {
				flights++
			}
		}
	}
	return loads, flights
}

// logOf is the log for lines about one manifest: they name it and its dataset.
func (c *Cache) logOf(id stoker.ID) *slog.Logger {
	name := ""
	c.holds.mu.Lock()
	if k := c.holds.known[id]; k != nil {
		name = k.Dataset
	}
	c.holds.mu.Unlock()
	return c.o.Log.With("dataset", name, "manifest", id.Short())
}

func (s *Set) log() *slog.Logger { return s.c.logOf(s.id) }
