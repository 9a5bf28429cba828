package api

import (
	"time"

	"stoker.dev"
)

// States of a worker.
const (
	WorkerLive     = "live"
	WorkerDraining = "draining" // takes nothing new, and gives up what it has
	WorkerDrained  = "drained"  // has given up all: it may be stopped
	WorkerLost     = "lost"
)

// Drain is since when, and by whom, a worker is drained: the body of PUT /v1/drain
// on a worker, and of PUT /v1/workers/{worker}/drain on the controller, which fills
// in both.
type Drain struct {
	Since time.Time `json:"since,omitzero"`
	By    string    `json:"by,omitempty"`
	// Drop: what nobody holds is dropped and not moved, though others have room.
	Drop bool `json:"drop,omitempty"`
}

// DrainStatus is GET /v1/workers/{worker}/drain: how far the drain of a worker is.
type DrainStatus struct {
	Worker string `json:"worker"` // whole id
	State  string `json:"state"`  // see WorkerInfo
	Drain
	Bytes         int64          `json:"bytes"`         // of objects, that it has yet
	HeldBytes     int64          `json:"heldBytes"`     // of those, what somebody holds: it moves
	ReservedBytes int64          `json:"reservedBytes"` // promised to loads that began before
	Datasets      []DrainDataset `json:"datasets"`      // that it has yet
	Views         []DrainView    `json:"views"`         // that are to be unmounted
}

// DrainDataset is a dataset of a worker that is drained.
type DrainDataset struct {
	Dataset  string    `json:"dataset"`
	Manifest stoker.ID `json:"manifest"`
	Bytes    int64     `json:"bytes"`
	Holders  []string  `json:"holders"`
	Moving   bool      `json:"moving,omitempty"`  // others copy it now
	Loading  bool      `json:"loading,omitempty"` // a load that began before brings it in here
	// Error is why it does not move for now: it is tried again. Kind nospace: no
	// other worker has room.
	Error *ErrorBody `json:"error,omitempty"`
}

// DrainView is a view that a drain waits for.
type DrainView struct {
	Dir     string `json:"dir"`
	Dataset string `json:"dataset"`
	Job     string `json:"job,omitempty"`
	UID     uint32 `json:"uid"` // whose files it shows
}

// DropRequest is the body of POST /v1/drop on a worker: shards that others were
// seen to have.
type DropRequest struct {
	Manifest stoker.ID `json:"manifest"`
	Shards   []uint32  `json:"shards"`
}
