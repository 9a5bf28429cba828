package main

import (
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"stoker.dev/cache/placement/redisplace"
	"stoker.dev/internal/api"
	"stoker.dev/internal/control"
	"stoker.dev/ufs/folder"
	"stoker.dev/workflows"
)

type controllerFlags struct {
	returnWindow                                                                                     time.Duration
	temporal, namespace, cluster, redis, redisPrefix, store, dir, socket, listen, tokenFile, pidFile string
}

func controllerCommand() *cobra.Command {
	f := controllerFlags{}
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "the API that users call, and Temporal's workflows; any number of them",
		Example: `  stokerd controller --temporal temporal:7233 --redis redis:6379 --store /shared/stoker \
      --listen 10.0.0.1:7071 --token-file /etc/stoker/tokens`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runController(cmd, &f) },
	}
	cmd.Flags().StringVar(&f.temporal, "temporal", "127.0.0.1:7233", "host:port of Temporal")
	cmd.Flags().StringVar(&f.namespace, "namespace", "default", "namespace in Temporal")
	cmd.Flags().StringVar(&f.cluster, "cluster", "default", "name of this cluster: part of all workflow ids and of the task queue")
	cmd.Flags().StringVar(&f.redis, "redis", "", "host:port of Redis")
	cmd.Flags().StringVar(&f.redisPrefix, "redis-prefix", "stoker", "prefix of all keys in Redis: one for each cluster")
	cmd.Flags().StringVar(&f.store, "store", "", "folder of the manifest store, the same for all daemons")
	cmd.Flags().StringVar(&f.dir, "dir", "", "folder for listings in the making, of this controller alone (default /var/lib/stoker/controller)")
	cmd.Flags().StringVar(&f.socket, "listen-socket", "/run/stoker/controller.sock", "Unix socket for users of this machine")
	cmd.Flags().StringVar(&f.listen, "listen", "", "host:port for users elsewhere; off loopback it needs --token-file")
	cmd.Flags().StringVar(&f.tokenFile, "token-file", "", "file with one `principal token` per line; workers take orders from the line of principal stoker")
	cmd.Flags().DurationVar(&f.returnWindow, "return-window", time.Minute, "how long a load waits for a worker that went away before others fetch what it had")
	cmd.Flags().StringVar(&f.pidFile, "pid-file", "", "write the process id here")
	return cmd
}

func runController(cmd *cobra.Command, f *controllerFlags) error {
	if err := required(map[string]string{"redis": f.redis, "store": f.store}); err != nil {
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
	if tokens == nil {
		log.Warn("no --token-file: workers will not take orders from this controller")
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
	flows, err := workflows.NewClient(workflows.ClientOptions{Address: f.temporal, Namespace: f.namespace, Cluster: f.cluster, ReturnWindow: f.returnWindow, Log: log})
	if err != nil {
		return err
	}
	defer flows.Close()
	dir := f.dir
	if dir == "" {
		dir = filepath.Join("/var/lib/stoker", "controller")
	}
	socket := f.socket
	if socket != "" {
		socket = absolute(socket)
	}
	c, err := control.Open(control.Options{
		Objects: objects, Index: index, Flows: flows, Dir: absolute(dir), Socket: socket, Listen: f.listen,
		Tokens: tokens, Version: version, Log: log,
	})
	if err != nil {
		return err
	}
	remove, err := pidFile(f.pidFile)
	if err != nil {
		return err
	}
	defer remove()
	return c.Run(cmd.Context(), sayReady(log, "controller"))
}
