// Package testenv starts the real servers that tests need: an S3 server, a
// Ceph with its gateway, a Redis, and a proxy that counts what an S3 server
// sends. A program that is
// missing fails the test and names scripts/need; nothing is skipped. Every
// process dies with the test, even if the test is killed.
package testenv

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Program finds a program on PATH or among Go's installed ones.
func Program(t testing.TB, name string) string {
	t.Helper()
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	out, err := exec.Command("go", "env", "GOPATH").Output()
	if err == nil {
		p := filepath.Join(strings.TrimSpace(string(out)), "bin", name)
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	t.Fatalf("%s is not installed: run scripts/need", name)
	return ""
}

// listen listens on a loopback port below those that the kernel gives to connections
// (32768 and up by default): one of them may be a client's by the time that its server starts.
func listen() (net.Listener, error) {
	const first, ports, tries = 10_000, 20_000, 100
	for range tries {
		if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(first+rand.N(ports)))); err == nil {
			return l, nil
		}
	}
	return net.Listen("tcp", "127.0.0.1:0")
}

// FreeAddress returns a loopback address where nobody listens.
func FreeAddress(t testing.TB) string {
	t.Helper()
	l, err := listen()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start runs a server until the test ends and waits until it accepts
// connections at address.
func start(t testing.TB, address string, cmd *exec.Cmd) {
	t.Helper()
	startWithin(t, 30*time.Second, address, cmd)
}

func startWithin(t testing.TB, patience time.Duration, address string, cmd *exec.Cmd) {
	t.Helper()
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	deadline := time.Now().Add(patience)
	for {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			_ = c.Close()
			return
		}
		select {
		case <-ended:
			t.Fatalf("%s ended: %s", cmd.Path, out.String())
		case <-time.After(20 * time.Millisecond): // another process: nothing to wait on
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen at %s: %s", cmd.Path, address, out.String())
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// S3 is a running S3 server; the folders below Root are its buckets.
type S3 struct {
	Endpoint, AccessKey, SecretKey, Root string
}

// StartS3 starts a versitygw over an empty folder and sets the AWS
// environment of the test to its credentials.
func StartS3(t testing.TB) *S3 {
	t.Helper()
	s := &S3{AccessKey: "stoker-test", SecretKey: "stoker-test-secret", Root: t.TempDir()}
	address := FreeAddress(t)
	s.Endpoint = "http://" + address
	start(t, address, exec.Command(Program(t, "versitygw"), "--access", s.AccessKey, "--secret", s.SecretKey,
		"--port", address, "--keep-alive", "--quiet", "posix", s.Root))
	s.setenv(t)
	return s
}

// setenv sets the AWS environment of the test.
func (s *S3) setenv(t testing.TB) {
	if env, ok := t.(interface{ Setenv(k, v string) }); ok {
		for k, v := range s.Env() {
			env.Setenv(k, v)
		}
	}
}

// Env is the AWS environment of the server's users. The endpoint is not in it.
func (s *S3) Env() map[string]string {
	return map[string]string{
		"AWS_ACCESS_KEY_ID": s.AccessKey, "AWS_SECRET_ACCESS_KEY": s.SecretKey, "AWS_REGION": "us-east-1",
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull, "AWS_EC2_METADATA_DISABLED": "true",
	}
}

// Bucket makes a bucket and returns its folder.
func (s *S3) Bucket(t testing.TB, name string) string {
	t.Helper()
	dir := filepath.Join(s.Root, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// StartRedis starts a redis-server that keeps nothing on disk; more are further
// lines of its configuration, as arguments.
func StartRedis(t testing.TB, more ...string) (address string) {
	t.Helper()
	address = FreeAddress(t)
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	start(t, address, exec.Command(Program(t, "redis-server"), append([]string{"--bind", host, "--port", port, "--save", "", "--appendonly", "no", "--dir", t.TempDir()}, more...)...))
	return address
}

// Proxy passes requests on to an S3 server, Host header and all, and counts
// the bodies of GETs by path.
type Proxy struct {
	server  *http.Server // the present one; used by the test's own goroutine
	handle  http.Handler
	address string

	mu    sync.Mutex
	bytes map[string]int64
	gets  map[string]int64
	total int64
	log   []Get
	gate  *gate
	fault func(Get, int) Fault
	asked int
	lists map[string]*lists // by bucket
}

// Get is one request for bytes [From, To) of an object; To is -1 for all.
type Get struct {
	Key      string // /bucket/key
	From, To int64
}

// CountingProxy starts a proxy before the server at backend, a URL.
func CountingProxy(t testing.TB, backend string) *Proxy {
	t.Helper()
	p := &Proxy{bytes: map[string]int64{}, gets: map[string]int64{}, lists: map[string]*lists{}}
	l, err := listen()
	if err != nil {
		t.Fatal(err)
	}
	p.address, p.handle = l.Addr().String(), p.handler(backend)
	p.serve(l)
	t.Cleanup(func() { _ = p.server.Close() })
	return p
}

// URL is the proxy's own endpoint.
func (p *Proxy) URL() string { return "http://" + p.address }

func (p *Proxy) add(key string, gets, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gets[key] += gets
	p.bytes[key] += n
	p.total += n
}

// Bytes returns how many bytes of objects went through.
func (p *Proxy) Bytes() (n int64) {
	for _, b := range p.BytesByKey() {
		n += b
	}
	return n
}

// Gets returns how many GETs of objects went through.
func (p *Proxy) Gets() (n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.gets {
		n += g
	}
	return n
}

// BytesByKey returns them by path, /bucket/key.
func (p *Proxy) BytesByKey() map[string]int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[string]int64{}
	for k, n := range p.bytes {
		out[k] = n
	}
	return out
}

// Log returns the GETs of objects so far, in order.
func (p *Proxy) Log() []Get {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.log)
}

// Reset begins to count anew.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.bytes)
	clear(p.gets)
	p.total, p.log = 0, nil
}

// String sums up for messages.
func (p *Proxy) String() string { return fmt.Sprintf("%d GETs, %d bytes", p.Gets(), p.Bytes()) }
