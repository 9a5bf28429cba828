package redisplace

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/placement"
	"stoker.dev/cache/placement/placementtest"
	"stoker.dev/internal/testenv"
)

const secret = "correct-horse-battery"

func password() (string, error) { return secret, nil }

// clientTLS trusts the CA and shows the client's certificate.
func clientTLS(t *testing.T, c testenv.Certs) *tls.Config {
	t.Helper()
	ca, err := os.ReadFile(c.CA)
	if err != nil {
		t.Fatal(err)
	}
	own, err := tls.LoadX509KeyPair(c.ClientCert, c.ClientKey)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{own}}
}

// works registers a worker and finds it.
func works(t *testing.T, o Options) error {
	t.Helper()
	o.Prefix = "t" + stoker.NewToken()
	x, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	if err := x.Register(t.Context(), placement.Worker{ID: "w", Incarnation: 7}, time.Minute); err != nil {
		return err
	}
	ws, err := x.Workers(t.Context())
	if err == nil && len(ws) != 1 {
		t.Errorf("%d workers", len(ws))
	}
	return err
}

// The server wants a password, TLS and a client's certificate: with all of
// them it works, without any one it does not, and no error shows the password.
func TestPasswordAndTLS(t *testing.T) {
	c := testenv.MakeCerts(t)
	port := freePort(t)
	plain := testenv.StartRedis(t, "--requirepass", secret, "--tls-port", port, "--tls-cert-file", c.ServerCert, "--tls-key-file", c.ServerKey, "--tls-ca-cert-file", c.CA,
		"--user", "alice", "on", ">"+secret, "~*", "+@all")
	safe := "rediss://127.0.0.1:" + port
	full := clientTLS(t, c)
	stranger := &tls.Config{RootCAs: full.RootCAs}
	wrong := func() (string, error) { return secret + "x", nil }
	for name, o := range map[string]Options{
		"plain": {Address: plain, Password: password}, "url": {Address: "redis://" + plain + "/3", Password: password},
		"tls": {Address: safe, Password: password, TLS: full}, "named user": {Address: "rediss://alice@127.0.0.1:" + port, Password: password, TLS: full},
	} {
		if err := works(t, o); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, o := range map[string]Options{
		"no password": {Address: plain}, "wrong password": {Address: plain, Password: wrong}, "wrong user": {Address: "redis://bob@" + plain, Password: password},
		"plain to the TLS port": {Address: "127.0.0.1:" + port, Password: password}, "no client certificate": {Address: safe, Password: password, TLS: stranger},
		"unknown CA": {Address: safe, Password: password},
	} {
		err := works(t, o)
		if err == nil || stoker.KindOf(err) != stoker.KindTransient || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if version, _, err := mustOpen(t, Options{Address: safe, Password: password, TLS: full}).Server(t.Context()); err != nil || version == "" {
		t.Errorf("version %q, %v", version, err)
	}
}

func mustOpen(t *testing.T, o Options) *Index {
	t.Helper()
	x, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close() })
	return x
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func redisCLI(t *testing.T, address string, args ...string) string {
	t.Helper()
	_, port, _ := net.SplitHostPort(address)
	out, err := exec.Command(testenv.Program(t, "redis-cli"), append([]string{"-p", port}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("redis-cli %v: %v %s", args, err, out)
	}
	return string(out)
}

func waitFor(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); {
		if time.Now().After(end) {
			t.Fatalf("never came true: %s", what)
		}
		<-time.After(20 * time.Millisecond) // other processes
	}
}

// A cluster of two nodes, each with half of the slots, passes the whole suite.
func TestRedisCluster(t *testing.T) {
	var nodes []string
	for range 2 {
		// The bus listens at port + 10000 unless told.
		nodes = append(nodes, testenv.StartRedis(t, "--cluster-enabled", "yes", "--cluster-port", freePort(t), "--cluster-config-file", "nodes.conf"))
	}
	redisCLI(t, nodes[0], "cluster", "addslotsrange", "0", "8191")
	redisCLI(t, nodes[1], "cluster", "addslotsrange", "8192", "16383")
	_, port, _ := net.SplitHostPort(nodes[1])
	var bus string
	for line := range strings.Lines(redisCLI(t, nodes[1], "cluster", "nodes")) {
		_, after, _ := strings.Cut(line, "@")
		bus, _, _ = strings.Cut(strings.Fields(after)[0], ",")
	}
	redisCLI(t, nodes[0], "cluster", "meet", "127.0.0.1", port, bus)
	for _, n := range nodes {
		waitFor(t, "the cluster is whole", func() bool { return strings.Contains(redisCLI(t, n, "cluster", "info"), "cluster_state:ok") })
	}
	placementtest.Run(t, func(t *testing.T) (placement.Index, func(time.Duration)) {
		x := mustOpen(t, Options{Address: "redis-cluster://" + strings.Join(nodes, ","), Prefix: "t" + stoker.NewToken()})
		return x, func(d time.Duration) { <-time.After(d) } // its clock is another process's
	})
	for _, n := range nodes {
		if strings.TrimSpace(redisCLI(t, n, "dbsize")) == "0" {
			t.Errorf("nothing lies on %s: the cluster was not used as one", n)
		}
	}
}

// Sentinels are asked where the master is.
func TestSentinel(t *testing.T) {
	master := testenv.StartRedis(t, "--requirepass", secret)
	host, port, err := net.SplitHostPort(master)
	if err != nil {
		t.Fatal(err)
	}
	watcher := sentinel(t, fmt.Sprintf("sentinel monitor main %s %s 1\nsentinel auth-pass main %s\n", host, port, secret))
	o := Options{Address: "redis-sentinel://" + watcher + "/main", Password: password}
	if err := works(t, o); err != nil {
		t.Error(err)
	}
	o.Address = "redis-sentinel://" + watcher + "/other"
	if err := works(t, o); stoker.KindOf(err) != stoker.KindTransient || err == nil {
		t.Errorf("a master that is not there: %v", err)
	}
}

func sentinel(t *testing.T, conf string) (address string) {
	t.Helper()
	port := freePort(t)
	path := filepath.Join(t.TempDir(), "sentinel.conf")
	if err := os.WriteFile(path, []byte("bind 127.0.0.1\nport "+port+"\n"+conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(testenv.Program(t, "redis-server"), path, "--sentinel")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	waitFor(t, "the sentinel answers", func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return "127.0.0.1:" + port
}

func TestAddresses(t *testing.T) {
	for address, want := range map[string]string{
		"r:6379": "{[r:6379] false false false   0}", "redis://r:6379": "{[r:6379] false false false   0}", "rediss://u%40x@[::1]:6379/2": "{[[::1]:6379] true false false u@x  2}",
		"redis-cluster://a:1,b:2": "{[a:1 b:2] false true false   0}", "rediss-cluster://a:1": "{[a:1] true true false   0}",
		"redis-sentinel://u@a:1,b:2/m": "{[a:1 b:2] false false true u m 0}", "rediss-sentinel://a:1/m": "{[a:1] true false true  m 0}",
	} {
		got, err := parse(address)
		if err != nil || fmt.Sprint(got) != want || Local(address) != strings.Contains(address, "::1") || Secure(address) != got.secure {
			t.Errorf("%s: %v, %v; want %s", address, got, err, want)
		}
	}
	if !Local("127.0.0.1:1") || !Local("redis-cluster://u@localhost:1,[::1]:2") || Local("redis-cluster://localhost:1,r:2") || Local("") {
		t.Error("local addresses are not told from others")
	}
	for _, address := range []string{
		"", "nonsense", "r", "r:", ":6379", "r:x", "r:99999", "http://r:1", "redisx://r:1", "redis://", "redis://r:1/x", "redis://r:1/-1", "redis://a:1,b:2", "a:1,b:2",
		"redis-cluster://a:1/2", "redis-sentinel://a:1", "redis://:" + secret + "@r:1", "redis://u:" + secret + "@r:1", "u:" + secret + "@r:1", "rediss://u:" + secret + "@r:x",
	} {
		_, err := parse(address)
		if stoker.KindOf(err) != stoker.KindInvalid || err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%q: %v", address, err)
		}
	}
}

// A worker whose address is not accepted does not exist for who reads, and
// cannot enter itself.
func TestAddressesThatAreNotAccepted(t *testing.T) {
	address := testenv.StartRedis(t)
	all := mustOpen(t, Options{Address: address})
	for i, a := range []string{"http://10.0.0.1:1", "http://evil:1"} {
		if err := all.Register(t.Context(), placement.Worker{ID: a, Incarnation: stoker.Incarnation(i + 1), Address: a}, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	some := mustOpen(t, Options{Address: address, Accept: func(a string) bool { return a == "http://10.0.0.1:1" }})
	ws, err := some.Workers(t.Context())
	if err != nil || len(ws) != 1 || ws[0].Address != "http://10.0.0.1:1" {
		t.Errorf("%v, %v", ws, err)
	}
	if err := some.Register(t.Context(), placement.Worker{ID: "x", Incarnation: 9, Address: "http://evil:1"}, time.Minute); stoker.KindOf(err) != stoker.KindInvalid || err == nil {
		t.Errorf("registered: %v", err)
	}
}

// Keys of another format are refused by who writes and by who reads; an index
// that was emptied takes the format of who comes first.
func TestUnknownFormatIsRefused(t *testing.T) {
	x := mustOpen(t, Options{Address: testenv.StartRedis(t)})
	w := placement.Worker{ID: "w", Incarnation: 7}
	if err := x.Register(t.Context(), w, time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := x.c.Set(t.Context(), x.format(), "2", 0).Err(); err != nil {
		t.Fatal(err)
	}
	_, err := x.Workers(t.Context())
	for what, err := range map[string]error{"register": x.Register(t.Context(), w, time.Minute), "workers": err} {
		if stoker.KindOf(err) != stoker.KindInvalid || err == nil || !strings.Contains(err.Error(), "format 2") || !strings.Contains(err.Error(), "this program knows 1") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := x.c.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	if err := x.Register(t.Context(), w, time.Minute); err != nil {
		t.Errorf("emptied: %v", err)
	}
}
