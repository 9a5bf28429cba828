package redisplace

import (
	"context"
	"crypto/tls"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"stoker.dev"
)

// Options say where Redis is and how it is reached.
type Options struct {
	// Address is host:port, or a URL: redis://[user@]host:port[/db],
	// redis-cluster://[user@]host:port,… and redis-sentinel://[user@]host:port,…/master;
	// each as rediss for TLS.
	Address string
	Prefix  string // of all keys; "" = stoker
	// Password is asked for each connection; nil = none. It may be called from
	// any goroutine.
	Password func() (string, error)
	TLS      *tls.Config // for the rediss forms; nil = the system's CAs
	// Accept says whether a worker may be where Redis says that it is: others
	// are as good as absent, so that nobody speaks to them. nil = anywhere. It
	// may be called from any goroutine.
	Accept func(address string) bool
}

// Secure reports whether an address asks for TLS.
func Secure(address string) bool {
	scheme, _, ok := strings.Cut(address, "://")
	return ok && strings.HasPrefix(scheme, "rediss")
}

// Local reports whether an address is of this machine alone.
func Local(address string) bool {
	t, err := parse(address)
	if err != nil {
		return false
	}
	for _, h := range t.hosts {
		host, _, _ := net.SplitHostPort(h) // parse has done it
		if ip := net.ParseIP(host); host != "localhost" && !ip.IsLoopback() {
			return false
		}
	}
	return true
}

// target is an address, taken apart.
type target struct {
	hosts            []string
	secure           bool
	cluster, watched bool // what stands behind the hosts: one server, a cluster, sentinels
	user, master     string
	db               int
}

// parse takes an address apart. Its errors show nothing before an @.
func parse(address string) (target, error) {
	shown := address
	if i := strings.LastIndex(address, "@"); i >= 0 {
		shown = "…" + address[i:]
	}
	bad := func(format string, args ...any) (target, error) {
		return target{}, stoker.Errorf(stoker.KindInvalid, "redis", shown, format, args...)
	}
	scheme, rest, isURL := strings.Cut(address, "://")
	if !isURL {
		scheme, rest = "redis", address
	}
	var t target
	kind, found := strings.CutPrefix(scheme, "rediss")
	if t.secure = found; !found {
		kind, found = strings.CutPrefix(scheme, "redis")
	}
	t.cluster, t.watched = kind == "-cluster", kind == "-sentinel"
	if !found || kind != "" && !t.cluster && !t.watched {
		return bad("is no address: write host:port, or redis://, redis-cluster:// or redis-sentinel:// (rediss… for TLS) and host:port")
	}
	if i := strings.LastIndex(rest, "@"); i >= 0 {
		user, _, password := strings.Cut(rest[:i], ":")
		if password || !isURL {
			return bad("holds a password: give it as STOKER_REDIS_PASSWORD or with --redis-password-file, where neither ps nor a log shows it")
		}
		var err error
		if t.user, err = url.PathUnescape(user); err != nil {
			return bad("the user's name is not escaped as in a URL")
		}
		rest = rest[i+1:]
	}
	hosts, path, _ := strings.Cut(rest, "/")
	for h := range strings.SplitSeq(hosts, ",") {
		host, port, err := net.SplitHostPort(h)
		if _, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || host == "" {
			return bad("%q is no address: write host:port", h)
		}
		t.hosts = append(t.hosts, h)
	}
	switch {
	case t.watched && path == "":
		return bad("sentinels are asked for a master by its name: write redis-sentinel://host:port,…/NAME")
	case t.watched:
		t.master = path
	case len(t.hosts) > 1 && !t.cluster:
		return bad("several servers are redis-cluster:// or redis-sentinel://")
	case path != "" && t.cluster:
		return bad("a cluster has no database numbers: write nothing after the addresses")
	case path != "":
		db, err := strconv.ParseUint(path, 10, 16)
		if err != nil {
			return bad("%q is no number of a database", path)
		}
		t.db = int(db)
	}
	return t, nil
}

// Open makes the client. It does not connect.
func Open(o Options) (*Index, error) {
	t, err := parse(o.Address)
	if err != nil {
		return nil, err
	}
	if o.Prefix == "" {
		o.Prefix = "stoker"
	}
	redis.SetLogger(silent{}) // what it would print, each call returns as an error
	u := &redis.UniversalOptions{
		Addrs: t.hosts, MasterName: t.master, IsClusterMode: t.cluster, DB: t.db, Username: t.user,
		DialTimeout: 2 * time.Second, ReadTimeout: 2 * time.Second, WriteTimeout: 2 * time.Second,
		MaxRetries: 1, DialerRetries: 1, ContextTimeoutEnabled: true,
	}
	if t.secure {
		u.TLSConfig = o.TLS
		if u.TLSConfig == nil {
			u.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		}
	}
	if o.Password != nil {
		u.CredentialsProviderContext = func(context.Context) (string, string, error) {
			p, err := o.Password()
			return t.user, p, err
		}
	}
	return &Index{prefix: o.Prefix, accept: o.Accept, c: client(t, u)}, nil
}

// client makes the client of what stands behind the addresses.
func client(t target, u *redis.UniversalOptions) redis.UniversalClient {
	switch {
	case t.watched:
		return redis.NewFailoverClient(u.Failover())
	case t.cluster:
		return redis.NewClusterClient(u.Cluster())
	}
	return redis.NewClient(u.Simple())
}

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}
