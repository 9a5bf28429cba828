package main

import (
	"log/slog"
	"sync"

	"github.com/spf13/cobra"

	"stoker.dev/cache/placement/redisplace"
	"stoker.dev/internal/api"
	"stoker.dev/internal/worker"
	"stoker.dev/ufs/folder"
)

type workerFlags struct {
	cacheDir, socket, listen, advertise, redis, redisPrefix, store, tokenFile, pidFile string
	capacity                                                                           byteSize
	streams                                                                            int
}

func workerCommand() *cobra.Command {
	f := workerFlags{capacity: 100 << 30}
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "the daemon of a node: cache, peer server, mounts",
		Example: `  stokerd worker --cache-dir /nvme/stoker --capacity 2TiB --redis redis:6379 --store /shared/stoker
  STOKER_CAPACITY=500GiB stokerd worker --config /etc/stoker/stokerd.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runWorker(cmd, &f) },
	}
	cmd.Flags().StringVar(&f.cacheDir, "cache-dir", "", "folder of the cache, made 0700")
	cmd.Flags().Var(&f.capacity, "capacity", "most bytes below the cache folder, index included")
	cmd.Flags().StringVar(&f.socket, "socket", "/run/stoker/worker.sock", "Unix socket for processes of this node")
	cmd.Flags().StringVar(&f.listen, "listen", "127.0.0.1:0", "host:port for controllers and other workers; off loopback it needs --token-file")
	cmd.Flags().StringVar(&f.advertise, "advertise", "", "base URL by which others reach --listen (default http:// and its address)")
	cmd.Flags().StringVar(&f.redis, "redis", "", "host:port of Redis")
	cmd.Flags().StringVar(&f.redisPrefix, "redis-prefix", "stoker", "prefix of all keys in Redis: one for each cluster")
	cmd.Flags().StringVar(&f.store, "store", "", "folder of the manifest store, the same for all daemons")
	cmd.Flags().StringVar(&f.tokenFile, "token-file", "", "file with one `principal token` per line; the daemons use the line of principal stoker among each other")
	cmd.Flags().StringVar(&f.pidFile, "pid-file", "", "write the process id here")
	cmd.Flags().IntVar(&f.streams, "streams", 16, "UFS requests that one load keeps in flight")
	return cmd
}

func runWorker(cmd *cobra.Command, f *workerFlags) error {
	if err := required(map[string]string{"cache-dir": f.cacheDir, "redis": f.redis, "store": f.store}); err != nil {
		return err
	}
	log, err := logger(cmd)
	if err != nil {
		return err
	}
	tokens, err := api.LoadTokens(f.tokenFile)
	if err != nil {
		return err
	}
	objects, err := folder.Open(absolute(f.store))
	if err != nil {
		return err
	}
	index, err := redisplace.Open(redisplace.Options{Address: f.redis, Prefix: f.redisPrefix})
	if err != nil {
		return err
	}
	defer func() { _ = index.Close() }()
	w, err := worker.Open(worker.Options{
		Dir: absolute(f.cacheDir), CapacityBytes: int64(f.capacity), Objects: objects, Index: index,
		Socket: absolute(f.socket), Listen: f.listen, Advertise: f.advertise, Tokens: tokens,
		Streams: f.streams, Version: version, Log: log,
	})
	if err != nil {
		return err
	}
	remove, err := pidFile(f.pidFile)
	if err != nil {
		return err
	}
	defer remove()
	return w.Run(cmd.Context(), sayReady(log, "worker"))
}

// sayReady logs once that the daemon serves.
func sayReady(log *slog.Logger, role string) func() {
	var once sync.Once
	return func() { once.Do(func() { log.Info("ready", "role", role, "version", version) }) }
}
