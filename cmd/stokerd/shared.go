package main

import (
	"context"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"stoker.dev/cache/placement/redisplace"
	"stoker.dev/internal/api"
	"stoker.dev/ufs"
	"stoker.dev/ufs/budget"
	"stoker.dev/ufs/folder"
	"stoker.dev/ufs/s3ufs"
)

// sharedFlags are those of both daemons.
type sharedFlags struct {
	redis, redisPrefix, redisPasswordFile string
	redisTLS                              tlsFiles
	store, tokenFile, pidFile             string
	networks                              networks
	allowFile                             allowed
	bandwidth, requests                   rates
}

func (f *sharedFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.redis, "redis", "", "host:port of Redis, or redis://[USER@]host:port[/DB], redis-cluster://host:port,… or redis-sentinel://host:port,…/MASTER; each as rediss… for TLS")
	cmd.Flags().StringVar(&f.redisPrefix, "redis-prefix", "stoker", "prefix of all keys in Redis: one for each cluster")
	cmd.Flags().StringVar(&f.redisPasswordFile, "redis-password-file", "", "file with the password for Redis, read again for each connection (or the password itself in STOKER_REDIS_PASSWORD)")
	f.redisTLS.add(cmd.Flags(), "redis", "Redis")
	cmd.Flags().StringVar(&f.store, "store", "", "manifest store, the same for all daemons: a shared folder, or s3://bucket/prefix[?endpoint=URL&region=NAME&profile=NAME&path-style]")
	cmd.Flags().StringVar(&f.tokenFile, "token-file", "", "file with one `principal token` per line; the daemons use the line of principal stoker among each other")
	cmd.Flags().Var(&f.networks, "worker-networks", "where workers may be, as 10.0.0.0/8,.nodes.example: what is registered elsewhere is ignored, and gets no token (default anywhere)")
	cmd.Flags().Var(&f.allowFile, "allow-file", "folders that file:// datasets may lie in, with ':' between them or the flag repeated; every user of stoker may then read all that is below them (default none)")
	f.requests.kind = budget.Requests
	cmd.Flags().Var(&f.bandwidth, "ufs-bandwidth", "most bytes per second that the whole cluster takes from an under file system: 10GB/s for each, or PATTERN=10GB/s for the endpoints (host:port, or file: and where it is mounted) that match, with ',' between them; the same for all daemons (default no limit)")
	cmd.Flags().Var(&f.requests, "ufs-requests", "most requests per second that the whole cluster sends to an under file system: 5000/s or PATTERN=5000/s, as --ufs-bandwidth (default no limit)")
	cmd.Flags().StringVar(&f.pidFile, "pid-file", "", "write the process id here")
}

// shared is what both daemons work on.
type shared struct {
	log     *slog.Logger
	tokens  *api.Tokens
	objects ufs.Objects
	index   *redisplace.Index
	notify  *notifier
}

// open opens it; need names further flags that must have a value.
func (f *sharedFlags) open(cmd *cobra.Command, need map[string]string) (s shared, err error) {
	values := map[string]string{"redis": f.redis, "store": f.store}
	for name, v := range need {
		values[name] = v
	}
	if err := required(values); err != nil {
		return s, err
	}
	if s.log, err = logger(cmd); err != nil {
		return s, err
	}
	if s.notify, err = newNotifier(s.log); err != nil {
		return s, err
	}
	for _, dir := range f.allowFile.missing() {
		s.log.Warn("--allow-file: there is no such folder: datasets below it fail until there is", "folder", dir)
	}
	if s.tokens, err = api.LoadTokens(f.tokenFile); err != nil {
		return s, err
	}
	if s.objects, err = openStore(cmd.Context(), f.store); err != nil {
		return s, err
	}
	s.index, err = f.openIndex(s.log)
	return s, err
}

// openStore opens the manifest store.
func openStore(ctx context.Context, where string) (ufs.Objects, error) {
	if !strings.Contains(where, "://") {
		return folder.Open(absolute(where))
	}
	return s3ufs.OpenObjects(ctx, where)
}

// checkStore finds out whether the store can be trusted with updates: for who
// writes to it.
func (s *shared) checkStore(ctx context.Context) error {
	if o, ok := s.objects.(interface{ CheckObjects(context.Context) error }); ok {
		return o.CheckObjects(ctx)
	}
	return nil
}

func (f *sharedFlags) openIndex(log *slog.Logger) (*redisplace.Index, error) {
	o := redisplace.Options{Address: f.redis, Prefix: f.redisPrefix, Accept: f.networks.accept(log)}
	var err error
	if o.Password, err = secret("redis-password-file", f.redisPasswordFile, "STOKER_REDIS_PASSWORD"); err != nil {
		return nil, err
	}
	if err := f.redisTLS.needsTLS(redisplace.Secure(f.redis), "write rediss://… as --redis"); err != nil {
		return nil, err
	}
	if o.TLS, err = f.redisTLS.config(); err != nil {
		return nil, err
	}
	if f.tokenFile != "" && o.Accept == nil && o.Password == nil && !redisplace.Local(f.redis) {
		log.Warn("whoever reaches Redis can register a worker, which is then sent this cluster's token: give --redis-password-file or --worker-networks")
	}
	return redisplace.Open(o)
}

// serve runs a daemon and tells the log and systemd how it is with it.
func (s *shared) serve(ctx context.Context, role string, run func(ctx context.Context, ready func()) error) error {
	watched := s.notify.watch(ctx)
	defer watched()
	return run(ctx, s.ready(role))
}
