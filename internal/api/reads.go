package api

import (
	"context"
	"net/http"

	"stoker.dev"
)

// ReadCounters counts where bytes came from since the worker started.
type ReadCounters struct {
	LocalBytes  int64 `json:"localBytes"`
	PeerBytes   int64 `json:"peerBytes"`
	UFSBytes    int64 `json:"ufsBytes"`
	UFSRequests int64 `json:"ufsRequests"`
	FUSEReads   int64 `json:"fuseReads"`
	// RandomReads waited for nothing but what they asked for, since windows of their
	// file had come in vain; SparedBytes is what these windows have besides.
	RandomReads int64 `json:"randomReads"`
	SparedBytes int64 `json:"sparedBytes"`
	ServedBytes int64 `json:"servedBytes,omitempty"` // to other workers; not counted by dataset
	// Ahead is what came before anybody asked for it.
	Ahead *AheadCounters `json:"ahead,omitempty"`
	Waits *ReadWaits     `json:"waits,omitempty"`
}

// AheadCounters say what was read ahead of readers, and for whom.
type AheadCounters struct {
	Bytes       int64 `json:"bytes"`
	UsedBytes   int64 `json:"usedBytes"`   // of those, what somebody has read since
	WastedBytes int64 `json:"wastedBytes"` // of those, what went, or was left by the last view, unread
	Streams     int64 `json:"streams"`     // readers in order that were followed
	Files       int64 `json:"files"`       // that came ahead of who reads one after the other, as listed
	Steps       int64 `json:"steps"`       // readers of pieces at equal distances
	Footers     int64 `json:"footers"`     // ends of containers that came as a whole
	Epochs      int64 `json:"epochs"`      // of jobs whose samplers are known, that were recognised
}

// ReadWaits is how long readers waited for bytes that were not here, in seconds, added
// up over all of them. Each moment of a wait has one cause.
type ReadWaits struct {
	UFSSeconds   float64 `json:"ufsSeconds"`   // the under file system to answer
	PeerSeconds  float64 `json:"peerSeconds"`  // another worker to send
	DiskSeconds  float64 `json:"diskSeconds"`  // this worker's disk: space, copies of older generations, what it had lost
	QueueSeconds float64 `json:"queueSeconds"` // memory, or a turn at the under file system
	LoadSeconds  float64 `json:"loadSeconds"`  // what a load had begun to bring in
}

// Seconds adds them up.
func (w ReadWaits) Seconds() float64 {
	return w.UFSSeconds + w.PeerSeconds + w.DiskSeconds + w.QueueSeconds + w.LoadSeconds
}

// Add adds what another worker, or dataset, counted.
func (r *ReadCounters) Add(o ReadCounters) {
	r.LocalBytes, r.PeerBytes, r.UFSBytes = r.LocalBytes+o.LocalBytes, r.PeerBytes+o.PeerBytes, r.UFSBytes+o.UFSBytes
	r.UFSRequests, r.FUSEReads, r.ServedBytes = r.UFSRequests+o.UFSRequests, r.FUSEReads+o.FUSEReads, r.ServedBytes+o.ServedBytes
	r.RandomReads, r.SparedBytes = r.RandomReads+o.RandomReads, r.SparedBytes+o.SparedBytes
	if a := o.Ahead; a != nil {
		if r.Ahead == nil {
			r.Ahead = &AheadCounters{}
		}
		x := r.Ahead
		x.Bytes, x.UsedBytes, x.WastedBytes = x.Bytes+a.Bytes, x.UsedBytes+a.UsedBytes, x.WastedBytes+a.WastedBytes
		x.Streams, x.Files, x.Steps, x.Footers, x.Epochs = x.Streams+a.Streams, x.Files+a.Files, x.Steps+a.Steps, x.Footers+a.Footers, x.Epochs+a.Epochs
	}
	if w := o.Waits; w != nil {
		if r.Waits == nil {
			r.Waits = &ReadWaits{}
		}
		x := r.Waits
		x.UFSSeconds, x.PeerSeconds, x.DiskSeconds = x.UFSSeconds+w.UFSSeconds, x.PeerSeconds+w.PeerSeconds, x.DiskSeconds+w.DiskSeconds
		x.QueueSeconds, x.LoadSeconds = x.QueueSeconds+w.QueueSeconds, x.LoadSeconds+w.LoadSeconds
	}
}

// WorkerReads is one element of GET /v1/datasets/{name}/reads.
type WorkerReads struct {
	ID    string `json:"id"`
	State string `json:"state"` // live | draining | drained | lost
	// Reads counts since the worker started; nil if it did not answer.
	Reads *ReadCounters `json:"reads,omitempty"`
}

// ReadsRequest is POST /v1/reads on a worker: what was read of some manifests, which
// it answers with ReadCounters.
type ReadsRequest struct {
	Manifests []stoker.ID `json:"manifests"`
}

// Reads asks what the worker read of some manifests. NotExist: the worker is of a
// release that does not count by dataset.
func (w *WorkerClient) Reads(ctx context.Context, req ReadsRequest) (ReadCounters, error) {
	return get[ReadCounters](ctx, w.c, answerTimeout, http.MethodPost, "/v1/reads", req)
}

// Reads asks what each worker read of a dataset; name may end in @GEN, without which
// all generations are meant.
func (c *Controller) Reads(ctx context.Context, name string) ([]WorkerReads, error) {
	seg, err := segment("dataset", name)
	if err != nil {
		return nil, err
	}
	return get[[]WorkerReads](ctx, c.c, answerTimeout, http.MethodGet, "/v1/datasets/"+seg+"/reads", nil)
}
