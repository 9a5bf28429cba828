package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"stoker.dev/cache"
	"stoker.dev/internal/worker"
)

type workerFlags struct {
	sharedFlags
	cacheDir, socket, listen, advertise string
	node, holder                        string
	capacity                            byteSize
	dirs                                folderList
	streams                             int
	memory, scrubRate, copyRate         byteSize
	readAhead                           byteSize
	evict                               cache.Evict
}

func workerCommand() *cobra.Command {
	f := workerFlags{capacity: 100 << 30, scrubRate: 10 << 20, copyRate: 256 << 20, readAhead: 64 << 20}
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "the daemon of a node: cache, peer server, mounts",
		Example: `  stokerd worker --cache-dir /nvme/stoker --capacity 2TiB --redis redis:6379 --store /shared/stoker
  stokerd worker --dir /nvme0/stoker=500GiB --dir /nvme1/stoker=1TiB --redis redis:6379 --store /shared/stoker
  stokerd worker --cache-dir /nvme/stoker --redis redis:6379 --store /shared/stoker --ufs-bandwidth 10GB/s --ufs-requests 5000/s
  STOKER_CAPACITY=500GiB stokerd worker --config /etc/stoker/stokerd.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runWorker(cmd, &f) },
	}
	cmd.Flags().StringVar(&f.cacheDir, "cache-dir", "", "folder of the cache, made 0700")
	cmd.Flags().Var(&f.capacity, "capacity", "most bytes below the cache folder, index included")
	cmd.Flags().Var(&f.dirs, "dir", "FOLDER=BYTES: a cache folder and its limit, once for each disk, instead of --cache-dir and --capacity")
	cmd.Flags().StringVar(&f.socket, "socket", "/run/stoker/worker.sock", "Unix socket for processes of this node")
	cmd.Flags().StringVar(&f.listen, "listen", "127.0.0.1:0", "host:port for controllers and other workers; off loopback it needs --token-file")
	cmd.Flags().StringVar(&f.advertise, "advertise", "", "base URL by which others reach --listen (default http:// and its address)")
	cmd.Flags().StringVar(&f.node, "node-name", "", "what the scheduler calls this node, for 'stoker claim --nodes' (default the host's name)")
	cmd.Flags().StringVar(&f.holder, "holder", "", "Unix socket of 'stokerd hold', which keeps this worker's mounts over its restarts (default the unit's FileDescriptorStoreMax= under systemd, else mounts die with the worker)")
	f.add(cmd)
	cmd.Flags().IntVar(&f.streams, "streams", 16, "UFS requests that one load keeps in flight")
	cmd.Flags().Var(&f.memory, "memory", "most bytes of memory that the worker uses, at least 64MiB (default 0: an eighth of what is here, at most 1GiB)")
	cmd.Flags().Var(&f.readAhead, "read-ahead", "most bytes that are brought in ahead of one reader whose next reads can be told, while it waits for each; 0 = none")
	cmd.Flags().Var(&f.scrubRate, "scrub-rate", "bytes per second that are read from the cache folders to find bits that went wrong; 0 = none")
	cmd.Flags().Var(&f.copyRate, "copy-rate", "bytes per second that the worker copies from others to restore lost replicas, to add some, or to take over from a worker that is drained; 0 = no limit")
	cmd.Flags().IntVar(&f.evict.HighPercent, "evict-high", 95, "percent of the capacity: when reads have filled so much, what nobody holds is evicted in the background, and reads of data that nobody holds store no more; 100 = only when it is full")
	cmd.Flags().IntVar(&f.evict.LowPercent, "evict-low", 90, "percent of the capacity at which that ends, below --evict-high")
	cmd.Flags().DurationVar(&f.evict.Idle, "evict-idle", 0, "how long data stays that nobody holds and nobody reads, as 72h; 0 = until its space is needed")
	return cmd
}

// readAhead is the setting as the worker has it.
func readAhead(b byteSize) int64 {
	if b == 0 {
		return -1 // none
	}
	return int64(b)
}

const leastAhead = 1 << 20

// leastCapacity is less than one shard: a folder of less is a slip of the pen.
const leastCapacity = 8 << 20

// checkLimits says which limit lets nothing in.
func (f *workerFlags) checkLimits() error {
	if f.streams < 1 {
		return usage{fmt.Errorf("--streams %d: want at least 1", f.streams)}
	}
	if len(f.dirs) == 0 && f.capacity < leastCapacity {
		return usage{fmt.Errorf("--capacity: %d bytes hold no shard: want at least 8MiB", f.capacity)}
	}
	if f.readAhead != 0 && f.readAhead < leastAhead {
		return usage{fmt.Errorf("--read-ahead: %d bytes are less than one request: want 0 for none, or at least 1MiB", f.readAhead)}
	}
	for _, d := range f.dirs {
		if d.CapacityBytes < leastCapacity {
			return usage{fmt.Errorf("--dir %s: %d bytes hold no shard: want at least 8MiB", d.Dir, d.CapacityBytes)}
		}
	}
	return nil
}

// checkEvict says what is wrong with the marks.
func checkEvict(e cache.Evict) error {
	switch {
	case e.HighPercent < 1 || e.HighPercent > 100:
		return usage{fmt.Errorf("--evict-high %d: want 1 to 100 percent of the capacity", e.HighPercent)}
	case e.LowPercent < 0 || e.LowPercent >= e.HighPercent:
		return usage{fmt.Errorf("--evict-low %d: want 0 to %d, below --evict-high", e.LowPercent, e.HighPercent-1)}
	case e.Idle < 0 || e.Idle > 0 && e.Idle < time.Second:
		return usage{fmt.Errorf("--evict-idle %v: want at least 1s, or 0 for never", e.Idle)}
	}
	return nil
}

// fewProcs is how many of Go's processors a worker has at least.
const fewProcs = 8

// moreProcs gives a worker on a machine with few CPUs more of Go's processors than CPUs. Its
// threads sit in system calls, of /dev/fuse and of files, and each takes a processor
// along until the runtime takes it back, 20 us later at best; go-fuse keeps as many readers of
// requests as there are processors, and makes others anew for each. Where GOMAXPROCS or a
// quota of the cgroup says how many there are, that holds: threads would only use up
// the quota sooner.
func moreProcs() {
	if n := runtime.GOMAXPROCS(0); os.Getenv("GOMAXPROCS") == "" && n == runtime.NumCPU() && n < fewProcs {
		runtime.GOMAXPROCS(fewProcs)
	}
}

func runWorker(cmd *cobra.Command, f *workerFlags) error {
	if err := f.networks.own(f.advertise, f.listen); err != nil {
		return err
	}
	need := map[string]string{}
	if len(f.dirs) == 0 {
		need["cache-dir"] = f.cacheDir
	} else if f.cacheDir != "" || cmd.Flags().Changed("capacity") {
		return usage{errors.New("--dir has the capacity of each folder; it goes with neither --cache-dir nor --capacity")}
	}
	if f.memory == 0 {
		f.memory = byteSize(worker.AutoMemory())
	} else if f.memory < worker.MinMemory {
		return usage{errors.New("--memory: a worker needs at least 64MiB")}
	}
	if err := f.checkLimits(); err != nil {
		return err
	}
	if err := checkEvict(f.evict); err != nil {
		return err
	}
	d, err := f.open(cmd, need)
	if err != nil {
		return err
	}
	defer func() { _ = d.index.Close() }()
	// The collector keeps the heap below this; what fills take is bounded by
	// the worker itself. An eighth is for what the collector does not see.
	if os.Getenv("GOMEMLIMIT") == "" || cmd.Flags().Changed("memory") {
		debug.SetMemoryLimit(int64(f.memory) - int64(f.memory)/8)
	}
	moreProcs()
	w, err := worker.Open(worker.Options{
		Dir: absolute(f.cacheDir), CapacityBytes: int64(f.capacity), Folders: f.dirs.folders(), Objects: d.objects, Index: d.index,
		Socket: absolute(f.socket), Listen: f.listen, Advertise: f.advertise, Tokens: d.tokens,
		Streams: f.streams, MemoryBytes: int64(f.memory), ScrubRate: int64(f.scrubRate), CopyRate: int64(f.copyRate), ReadAheadBytes: readAhead(f.readAhead), AllowFiles: f.allowFile, Version: version, Log: d.log,
		Limits: f.limits(), Claims: d.index, Evict: f.evict, Node: f.node, Hold: d.holder(cmd.Context(), f.holder),
	})
	if err != nil {
		return err
	}
	remove, err := pidFile(f.pidFile)
	if err != nil {
		return err
	}
	defer remove()
	return d.serve(cmd.Context(), "worker", w.Run)
}
