package worker

import (
	"context"
	"time"

	"stoker.dev/cache/store"
	"stoker.dev/internal/metrics"
)

// askDisk bounds what a scrape asks of the cache folder and the manifest store.
const askDisk = 5 * time.Second

// watched makes the worker's metrics. The names are those of docs/adr/0007.
func (w *Worker) watched() *metrics.Registry {
	r := metrics.New("worker", w.o.Version)
	r.Live(w.readMetrics)
	r.Live(w.aheadMetrics)
	r.Live(w.spaceMetrics)
	r.Live(w.budgetMetrics)
	r.Asked(askDisk, w.heldMetrics)
	return r
}

// readMetrics are the counters of reads and loads.
func (w *Worker) readMetrics(s *metrics.Samples) {
	c := w.cache.Counters()
	const read, source = "stoker_read_bytes_total", "Bytes that reads and loads got: local from this worker's disk, peer from other workers, ufs from the under file system."
	s.Counter(read, source, c.LocalBytes.Load(), "source", "local")
	s.Counter(read, source, c.PeerBytes.Load(), "source", "peer")
	s.Counter(read, source, c.UFS.Bytes.Load(), "source", "ufs")
	s.Counter("stoker_copied_bytes_total", "Bytes of a new generation that were copied from an older one, here or at a peer.", c.CopiedBytes.Load())
	s.Counter("stoker_peer_served_bytes_total", "Bytes that other workers got from this one.", c.ServedBytes.Load())
	s.Counter("stoker_ufs_requests_total", "Data requests to the under file system, retries included.", c.UFS.Requests.Load())
	s.Counter("stoker_ufs_bytes_total", "Bytes that came from the under file system and were of use.", c.UFS.Bytes.Load())
	s.Counter("stoker_ufs_retried_bytes_total", "Bytes that came from the under file system and were of no use.", c.UFS.RetriedBytes.Load())
	s.Counter("stoker_ufs_retries_total", "Of the data requests: later tries.", c.UFS.Retries.Load())
	s.Counter("stoker_ufs_throttled_total", "Of the data requests: those that the store refused because it has too much to do.", c.UFS.Throttled.Load())
	s.Counter("stoker_ufs_hedges_total", "Of the data requests: second ones, sent because the first was slow.", c.UFS.Hedges.Load())
	s.Counter("stoker_ufs_hedged_bytes_total", "Bytes that the slower of two requests brought.", c.UFS.HedgedBytes.Load())
	s.Counter("stoker_ufs_bypass_requests_total", "Of the data requests: those past an owner that did not answer.", c.Bypass.Requests.Load())
	s.Counter("stoker_ufs_bypass_bytes_total", "Of the bytes from the under file system: those past an owner that did not answer.", c.Bypass.Bytes.Load())
	s.Counter("stoker_corrupt_blocks_total", "Blocks on disk that could not be read, or did not match their checksum.", c.Corrupt.Load())
	s.Counter("stoker_disk_lost_bytes_total", "Bytes of objects that were here and went with their disk.", c.LostBytes.Load())
	s.Counter("stoker_scrubbed_bytes_total", "Bytes of sealed shards that scrubs read and compared.", c.ScrubbedBytes.Load())
	s.Counter("stoker_scrub_passes_total", "Scrubs that came to their end: each read all sealed shards.", c.ScrubPasses.Load())
	c.Evicted(func(reason, policy string, shards, bytes int64) {
		s.Counter("stoker_evicted_shards_total", "Shards that were evicted.", shards, "reason", reason, "policy", policy)
		s.Counter("stoker_evicted_bytes_total", "Bytes of the shards that were evicted.", bytes, "reason", reason, "policy", policy)
	})
	s.Counter("stoker_fuse_reads_total", "READ requests of the kernel: misses of the page cache.", w.cache.Counters().Reads.Reads.Load())
	s.Counter("stoker_fuse_requests_total", "Requests of the kernel to views, of any kind (READ, LOOKUP, READDIRPLUS and others).", w.views.requests())
}

// spaceMetrics are what is here and under way.
func (w *Worker) spaceMetrics(s *metrics.Samples) {
	u := w.store.Usage()
	s.Gauge("stoker_cache_capacity_bytes", "Most bytes below the cache folder.", float64(u.CapacityBytes))
	s.Gauge("stoker_cache_used_bytes", "Bytes that shards and documents take.", float64(u.UsedBytes))
	s.Gauge("stoker_cache_reserved_bytes", "Bytes promised to loads and not yet used.", float64(u.ReservedBytes))
	const disks, disksHelp = "stoker_disks", "Cache folders by state: readonly and failed ones are out of service."
	count := map[store.State]int{}
	for _, f := range w.store.Folders() {
		count[f.State]++
	}
	for _, state := range []store.State{store.InService, store.Full, store.Readonly, store.Failed} {
		s.Gauge(disks, disksHelp, float64(count[state]), "state", string(state))
	}
	used, limit, waits := w.cache.MemoryUse()
	s.Gauge("stoker_memory_limit_bytes", "What the worker may use: half of it for fills and answers to peers.", float64(limit))
	s.Gauge("stoker_memory_granted_bytes", "What fills and answers to peers have of it.", float64(used))
	s.Counter("stoker_memory_waits_total", "Fills and answers that had to wait for memory.", waits)
	loads, flights := w.cache.Running()
	s.Gauge("stoker_loads_running", "Parts of plans that are being loaded.", float64(loads))
	s.Gauge("stoker_flights_running", "Fetches of runs of blocks under way.", float64(flights))
	most, now := w.mounts.InFlight()
	s.Gauge("stoker_ufs_requests_limit", "Data requests that may be in flight at present, over all stores in use.", float64(most))
	s.Gauge("stoker_ufs_requests_running", "Data requests in flight.", float64(now))
	s.Gauge("stoker_leases", "Leases in force.", float64(len(w.cache.Leases())))
	views, _ := w.views.List()
	s.Gauge("stoker_views", "Views mounted.", float64(len(views)))
}

// heldMetrics are those for which manifests and the list of shards are read.
func (w *Worker) heldMetrics(ctx context.Context, s *metrics.Samples) {
	count := map[bool]int{}
	for _, sh := range w.store.Shards() {
		count[sh.Sealed]++
	}
	const shards, help = "stoker_shards", "Shard files here: sealed ones are whole, open ones are being filled."
	s.Gauge(shards, help, float64(count[true]), "state", "sealed")
	s.Gauge(shards, help, float64(count[false]), "state", "open")
	free, err := w.cache.FreeableBytes(ctx)
	if err != nil {
		return // neither of the two is known
	}
	s.Gauge("stoker_cache_evictable_bytes", "Of the used bytes: shards that nobody holds.", float64(free))
	s.Gauge("stoker_cache_held_bytes", "Of the used bytes: all others.", float64(max(0, w.store.Usage().UsedBytes-free)))
}
