package main

import (
	"log/slog"
	"sync"

	"github.com/spf13/cobra"

	"stoker.dev/cache/placement/redisplace"
	"stoker.dev/internal/api"
	"stoker.dev/ufs/folder"
)

// sharedFlags are those of both daemons.
type sharedFlags struct {
	redis, redisPrefix, store, tokenFile, pidFile string
}

func (f *sharedFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.redis, "redis", "", "host:port of Redis")
	cmd.Flags().StringVar(&f.redisPrefix, "redis-prefix", "stoker", "prefix of all keys in Redis: one for each cluster")
	cmd.Flags().StringVar(&f.store, "store", "", "folder of the manifest store, the same for all daemons")
	cmd.Flags().StringVar(&f.tokenFile, "token-file", "", "file with one `principal token` per line; the daemons use the line of principal stoker among each other")
	cmd.Flags().StringVar(&f.pidFile, "pid-file", "", "write the process id here")
}

// shared is what both daemons work on.
type shared struct {
	log     *slog.Logger
	tokens  *api.Tokens
	objects *folder.Objects
	index   *redisplace.Index
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
	if s.tokens, err = api.LoadTokens(f.tokenFile); err != nil {
		return s, err
	}
	if s.objects, err = folder.Open(absolute(f.store)); err != nil {
		return s, err
	}
	s.index, err = redisplace.Open(redisplace.Options{Address: f.redis, Prefix: f.redisPrefix})
	return s, err
}

// sayReady logs once that the daemon serves.
func sayReady(log *slog.Logger, role string) func() {
	var once sync.Once
	return func() { once.Do(func() { log.Info("ready", "role", role, "version", version) }) }
}
