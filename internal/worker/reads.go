package worker

import (
	"net/http"

	"stoker.dev/cache"
	"stoker.dev/internal/api"
	"stoker.dev/internal/metrics"
)

// countersOf is what was counted, as the API has it.
func countersOf(r *cache.Reads) api.ReadCounters {
	w := r.Waits()
	return api.ReadCounters{
		LocalBytes: r.LocalBytes.Load(), PeerBytes: r.PeerBytes.Load(),
		UFSBytes: r.UFS.Bytes.Load(), UFSRequests: r.UFS.Requests.Load(), FUSEReads: r.Reads.Load(),
		RandomReads: r.Random.Load(), SparedBytes: r.SparedBytes.Load(),
		Ahead: &api.AheadCounters{
			Bytes: r.AheadBytes.Load(), UsedBytes: r.AheadUsedBytes.Load(), WastedBytes: r.AheadWastedBytes.Load(),
			Streams: r.Streams.Load(), Files: r.Files.Load(), Steps: r.Steppers.Load(), Footers: r.Footers.Load(), Epochs: r.Epochs.Load(),
		},
		Waits: &api.ReadWaits{
			UFSSeconds: w.UFS.Seconds(), PeerSeconds: w.Peer.Seconds(), DiskSeconds: w.Disk.Seconds(),
			QueueSeconds: w.Queue.Seconds(), LoadSeconds: w.Load.Seconds(),
		},
	}
}

// readsOf is POST /v1/reads.
func (w *Worker) readsOf(rw http.ResponseWriter, r *http.Request) error {
	var req api.ReadsRequest
	if err := api.ReadJSON(rw, r, &req); err != nil {
		return err
	}
	sum := api.ReadCounters{Ahead: &api.AheadCounters{}, Waits: &api.ReadWaits{}}
	w.cache.ReadsOf(req.Manifests, func(r *cache.Reads) { sum.Add(countersOf(r)) })
	api.WriteJSON(rw, http.StatusOK, sum)
	return nil
}

// aheadMetrics are those of what came ahead of readers, and of what they waited for.
func (w *Worker) aheadMetrics(s *metrics.Samples) {
	c := countersOf(&w.cache.Counters().Reads)
	s.Counter("stoker_read_ahead_blocks_total", "Blocks (of at most 256 KiB) that fills began to bring in before they were asked for.", w.cache.Counters().AheadBlocks.Load())
	s.Counter("stoker_read_ahead_bytes_total", "Bytes that came before they were asked for.", c.Ahead.Bytes)
	s.Counter("stoker_read_ahead_used_bytes_total", "Of those, what was read since.", c.Ahead.UsedBytes)
	s.Counter("stoker_read_ahead_wasted_bytes_total", "Of those, what went, or was left by the last view of its dataset, unread.", c.Ahead.WastedBytes)
	const patterns, help = "stoker_read_patterns_total", "Readers whose pattern was seen and read ahead of: in order (stream), files that came ahead of one who reads one after the other as listed (file), at equal distances (steps), the end of a container (footer), an epoch of a job whose sampler is known (epoch)."
	s.Counter(patterns, help, c.Ahead.Streams, "pattern", "stream")
	s.Counter(patterns, help, c.Ahead.Files, "pattern", "file")
	s.Counter(patterns, help, c.Ahead.Steps, "pattern", "steps")
	s.Counter(patterns, help, c.Ahead.Footers, "pattern", "footer")
	s.Counter(patterns, help, c.Ahead.Epochs, "pattern", "epoch")
	s.Counter("stoker_random_reads_total", "Reads in no order of a large object that brought in no more than they asked for.", c.RandomReads)
	s.Counter("stoker_random_spared_bytes_total", "What the windows of 4 MiB of these reads have besides.", c.SparedBytes)
	const waits, waitHelp = "stoker_read_wait_seconds_total", "How long readers waited for bytes that were not here, added up: for the under file system (ufs), another worker (peer), the disk, memory or a turn (queue), what a load was bringing (load)."
	for _, x := range []struct {
		cause   string
		seconds float64
	}{{"ufs", c.Waits.UFSSeconds}, {"peer", c.Waits.PeerSeconds}, {"disk", c.Waits.DiskSeconds}, {"queue", c.Waits.QueueSeconds}, {"load", c.Waits.LoadSeconds}} {
		s.Seconds(waits, waitHelp, x.seconds, "cause", x.cause)
	}
}
