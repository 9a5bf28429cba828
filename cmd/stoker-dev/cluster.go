package main

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	mrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// cluster is what stands in D/cluster.json: chosen once, true as long as D is.
type cluster struct {
	Workers  int            `json:"workers"`
	Capacity string         `json:"capacity"`
	S3Root   string         `json:"s3Root,omitempty"`
	Window   string         `json:"returnWindow,omitempty"`
	Allow    []string       `json:"allowFile,omitempty"` // folders
	Budget   string         `json:"ufsBandwidth,omitempty"`
	Requests string         `json:"ufsRequests,omitempty"`
	Ports    map[string]int `json:"ports"` // by role
	Access   string         `json:"access"`
	Secret   string         `json:"secret"`

	dir string
}

const (
	dirMode     = 0o755
	privateMode = 0o600
)

// openCluster reads D, or says that there is none.
func openCluster(dir string) (*cluster, error) {
	if dir == "" {
		return nil, usagef("--dir is needed")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	c := &cluster{dir: abs, Ports: map[string]int{}}
	body, err := os.ReadFile(c.path("cluster.json"))
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(body, c); err != nil {
		return nil, fmt.Errorf("%s: %w: is it the folder of a cluster?", c.path("cluster.json"), err)
	}
	return c, nil
}

// makeCluster opens D or makes it, with what the flags say.
func makeCluster(o *upOptions) (*cluster, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	c, err := openCluster(o.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := refuseForeign(c.dir); err != nil {
			return nil, err
		}
		c.Workers, c.Capacity = o.workers, o.capacity
		c.Access, c.Secret = "stoker-"+random(4), random(20)
	case errors.Is(err, syscall.ENOTDIR):
		return nil, usagef("--dir %s: is no folder", c.dir)
	case err != nil:
		return nil, err
	default:
		if err := c.refuseChanges(o); err != nil {
			return nil, err
		}
	}
	if o.changed("workers") {
		c.Workers = max(c.Workers, o.workers) // the cache of one that is left out would stay behind
		if o.workers < c.Workers {
			return nil, usagef("--workers %d: %s has %d already", o.workers, c.dir, c.Workers)
		}
	}
	if o.changed("capacity") {
		c.Capacity = o.capacity
	}
	if o.changed("s3-root") {
		c.S3Root = o.s3Root
	}
	if o.changed("allow-file") {
		c.Allow = o.allow
	}
	if o.changed("return-window") {
		c.Window = o.window.String()
	}
	if o.changed("ufs-bandwidth") {
		c.Budget = o.bandwidth
	}
	if o.changed("ufs-requests") {
		c.Requests = o.requests
	}
	if err := os.MkdirAll(c.dir, dirMode); err != nil {
		return nil, err
	}
	if err := os.Chmod(c.dir, dirMode); err != nil {
		return nil, err
	}
	if err := c.choosePorts(); err != nil {
		return nil, err
	}
	return c, c.save()
}

func (c *cluster) path(parts ...string) string {
	return filepath.Join(append([]string{c.dir}, parts...)...)
}

// roles lists what belongs to the cluster, in the order of starting.
func (c *cluster) roles() []string {
	all := []string{"temporal", "redis"}
	if c.S3Root != "" {
		all = append(all, "s3")
	}
	all = append(all, "controller", "holder")
	for k := range c.Workers {
		all = append(all, "worker-"+strconv.Itoa(k+1))
	}
	return all
}

// choosePorts takes free ports for the roles that have none yet. All are held
// until the last is taken, so that no two are the same.
func (c *cluster) choosePorts() error {
	var held []net.Listener
	defer func() {
		for _, l := range held {
			_ = l.Close()
		}
	}()
	for _, role := range c.roles() {
		if c.Ports[role] != 0 || role == "controller" || role == "holder" {
			continue
		}
		l, err := listen()
		if err != nil {
			return err
		}
		held = append(held, l)
		c.Ports[role] = l.Addr().(*net.TCPAddr).Port
	}
	return nil
}

// listen listens on a loopback port below those that the kernel gives to connections
// (32768 and up by default): one of them may be a client's by the time that its server starts.
func listen() (net.Listener, error) {
	const first, ports, tries = 10_000, 20_000, 100
	for range tries {
		if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(first+mrand.N(ports)))); err == nil {
			return l, nil
		}
	}
	return net.Listen("tcp", "127.0.0.1:0")
}

func (c *cluster) address(role string) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(c.Ports[role]))
}

// save writes cluster.json, the token and env.
func (c *cluster) save() error {
	body, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(c.path("cluster.json"), append(body, '\n'), privateMode); err != nil {
		return err
	}
	if _, err := os.Stat(c.path("token")); errors.Is(err, fs.ErrNotExist) {
		if err := writeFile(c.path("token"), []byte("stoker "+random(24)+"\n"), privateMode); err != nil {
			return err
		}
	}
	var env strings.Builder
	for _, kv := range c.env() {
		k, v, _ := strings.Cut(kv, "=")
		fmt.Fprintf(&env, "export %s='%s'\n", k, strings.ReplaceAll(v, "'", `'\''`))
	}
	return writeFile(c.path("env"), []byte(env.String()), 0o644)
}

// env is what users of the cluster need in their environment.
func (c *cluster) env() []string {
	out := []string{
		"STOKER_CONTROLLER=unix://" + c.path("controller.sock"),
		"STOKER_SOCKET=" + c.path("worker-1", "worker.sock"),
	}
	if c.S3Root != "" {
		out = append(out, c.s3Env()...)
		out = append(out, "STOKER_S3_ENDPOINT=http://"+c.address("s3"))
	}
	return out
}

// s3Env is what the AWS SDK needs to find the S3 server.
func (c *cluster) s3Env() []string {
	return []string{
		"AWS_ACCESS_KEY_ID=" + c.Access, "AWS_SECRET_ACCESS_KEY=" + c.Secret, "AWS_REGION=us-east-1",
		"AWS_ENDPOINT_URL_S3=http://" + c.address("s3"),
	}
}

// childEnv is a role's environment: this one's, without STOKER_*.
func (c *cluster) childEnv() []string {
	var out []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "STOKER_") {
			out = append(out, kv)
		}
	}
	if c.S3Root != "" {
		out = append(out, c.s3Env()...)
	}
	return out
}

// lock keeps two commands from changing one cluster at the same time.
func (c *cluster) lock() (unlock func(), err error) {
	f, err := os.OpenFile(c.path(".lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, privateMode)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}

var workerRole = regexp.MustCompile(`^worker-[1-9][0-9]*$`)

// files of a role: where its process id, its log and its data are.
func (c *cluster) pidFile(role string) string {
	if workerRole.MatchString(role) {
		return c.path(role, "worker.pid")
	}
	return c.path(role + ".pid")
}

func (c *cluster) logFile(role string) string {
	if workerRole.MatchString(role) {
		return c.path(role, "worker.log")
	}
	return c.path(role + ".log")
}

// command makes the command line of a role.
func (c *cluster) command(role string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	stokerd := filepath.Join(filepath.Dir(self), "stokerd")
	redis := c.address("redis")
	switch {
	case role == "temporal", role == "s3":
		return exec.Command(self, "serve", role, "--dir", c.dir), nil
	case role == "redis":
		if server, err := exec.LookPath("redis-server"); err == nil {
			if err := os.MkdirAll(c.path("redis"), 0o700); err != nil {
				return nil, err
			}
			return exec.Command(server, "--bind", "127.0.0.1", "--port", strconv.Itoa(c.Ports["redis"]),
				"--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction", "--dir", c.path("redis")), nil
		}
		return exec.Command(self, "serve", role, "--dir", c.dir), nil
	case role == "controller":
		return c.limited(exec.Command(stokerd, "controller", "--temporal", c.address("temporal"), "--redis", redis, "--store", c.path("store"),
			"--dir", c.path("controller"), "--listen-socket", c.path("controller.sock"), "--token-file", c.path("token"),
			"--return-window", cmp.Or(c.Window, defaultWindow.String()), "--allow-file", strings.Join(c.Allow, ":"))), nil
	case role == "holder":
		return exec.Command(stokerd, "hold", "--holder", c.path("hold.sock")), nil
	case workerRole.MatchString(role):
		if err := os.MkdirAll(c.path(role), dirMode); err != nil {
			return nil, err
		}
		return c.limited(exec.Command(stokerd, "worker", "--cache-dir", c.path(role, "cache"), "--capacity", c.Capacity, "--redis", redis,
			"--store", c.path("store"), "--socket", c.path(role, "worker.sock"), "--listen", c.address(role), "--token-file", c.path("token"),
			"--node-name", role, "--holder", c.path("hold.sock"), "--allow-file", strings.Join(c.Allow, ":"))), nil
	}
	return nil, usagef("%q is no role: temporal, redis, s3, controller, holder, worker-K", role)
}

// limited adds the limits of under file systems to a daemon's command line.
func (c *cluster) limited(cmd *exec.Cmd) *exec.Cmd {
	if c.Budget != "" {
		cmd.Args = append(cmd.Args, "--ufs-bandwidth", c.Budget)
	}
	if c.Requests != "" {
		cmd.Args = append(cmd.Args, "--ufs-requests", c.Requests)
	}
	return cmd
}

func writeFile(path string, body []byte, mode os.FileMode) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, body, mode); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func random(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}
