package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"stoker.dev/internal/testenv"
)

// apart is a cluster of separate services, started with the commands and files
// of docs/deploy.md: only addresses and folders are others.
type apart struct {
	*cluster
	doc      string
	dir      string // its etc, shared and nvme stand for the document's folders
	s3       *testenv.S3
	replaced []string // old, new, …: what differs from the document
	daemons  map[string]*daemon
	services map[string]*service
	taken    map[string]bool // marks of the blocks that were used
}

// daemon is a process that tells its states to a socket, as to systemd.
type daemon struct {
	role   string
	config string
	cmd    *exec.Cmd
	states *net.UnixConn
	log    string
}

// marked returns the code block of the document that follows a mark.
func (a *apart) marked(mark string) string {
	a.t.Helper()
	_, after, ok := strings.Cut(a.doc, "<!-- "+mark+" -->\n```\n")
	block, _, closed := strings.Cut(after, "\n```\n")
	a.taken[mark] = true
	if !ok || !closed {
		a.t.Fatalf("docs/deploy.md has no block %q", mark)
	}
	return block + "\n"
}

// allTaken checks that no marked block of the document is left unused.
func (a *apart) allTaken() {
	a.t.Helper()
	for _, part := range strings.Split(a.doc, "\n<!-- ")[1:] {
		if mark, _, _ := strings.Cut(part, " -->"); !a.taken[mark] {
			a.t.Errorf("docs/deploy.md says that this test uses the block %q, and it does not", mark)
		}
	}
}

// here puts this machine's addresses and folders into a block.
func (a *apart) here(text string, more ...string) string {
	return strings.NewReplacer(append(more, a.replaced...)...).Replace(text)
}

// file writes a file of the document below etc, under a name of its own.
func (a *apart) file(name, as string, more ...string) string {
	a.t.Helper()
	path := filepath.Join(a.dir, "etc", as)
	if err := os.WriteFile(path, []byte(a.here(a.marked("file: /etc/stoker/"+name), more...)), 0o640); err != nil {
		a.t.Fatal(err)
	}
	return path
}

// sh runs a block of the document to its end.
func (a *apart) sh(mark string) {
	a.t.Helper()
	if out, err := exec.Command("sh", "-ec", a.here(a.marked("run: "+mark))).CombinedOutput(); err != nil {
		a.t.Fatalf("%s: %v\n%s", mark, err, out)
	}
}

// service is a server that stoker uses, with what starts it.
type service struct {
	name    string
	line    []string
	address string
	cmd     *exec.Cmd
}

// service starts a server, which lives until it is stopped or the test ends.
func (a *apart) service(name, address string, line ...string) {
	a.t.Helper()
	s := &service{name: name, line: line, address: address}
	a.services[name] = s
	a.t.Cleanup(func() { _ = s.cmd.Process.Kill(); _ = s.cmd.Wait() })
	a.serve(s)
}

// serve starts a server, for the first time or again.
func (a *apart) serve(s *service) {
	a.t.Helper()
	log, err := os.OpenFile(filepath.Join(a.dir, s.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		a.t.Fatal(err)
	}
	defer log.Close()
	s.cmd = exec.Command(s.line[0], s.line[1:]...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	a.eventually(s.name+" listens", func() bool { return listens(s.address) })
}

func listens(address string) bool {
	c, err := net.Dial("tcp", address)
	if err == nil {
		_ = c.Close()
	}
	return err == nil
}

// start starts a daemon and waits until it says that it is ready.
func (a *apart) start(d *daemon) {
	a.t.Helper()
	socket := filepath.Join(a.dir, d.role+".notify")
	_ = os.Remove(socket) // of its last life
	var err error
	if d.states, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"}); err != nil {
		a.t.Fatal(err)
	}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		a.t.Fatal(err)
	}
	defer log.Close()
	kind, _, _ := strings.Cut(d.role, "-")
	line := strings.Fields(a.here(a.marked("run: "+kind), "/etc/stoker/"+kind+".yaml", d.config))
	line[0] = binary(a.t, line[0])
	d.cmd = exec.Command(testenv.Program(a.t, "setpriv"), append(a.privileges(kind), line...)...)
	d.cmd.Stdout, d.cmd.Stderr, d.cmd.Env = log, log, append(a.credentials(), "NOTIFY_SOCKET="+socket, "PATH="+os.Getenv("PATH"))
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	a.says(d, "READY=1")
}

// privileges are those that the daemon's systemd unit leaves it.
func (a *apart) privileges(kind string) []string {
	a.t.Helper()
	unit, err := os.ReadFile(filepath.Join("..", "..", "deploy", "systemd", "stoker-"+kind+".service"))
	_, names, ok := strings.Cut(string(unit), "\nCapabilityBoundingSet=")
	if err != nil || !ok {
		a.t.Fatalf("the unit of %s: %v", kind, err)
	}
	names, _, _ = strings.Cut(names, "\n")
	set := "-all"
	for _, name := range strings.Fields(names) {
		set += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
	}
	return []string{"--no-new-privs", "--bounding-set", set, "--"}
}

// says waits until a daemon says something.
func (a *apart) says(d *daemon, want string) {
	a.t.Helper()
	b := make([]byte, 4096)
	_ = d.states.SetReadDeadline(time.Now().Add(60 * time.Second))
	for {
		n, err := d.states.Read(b)
		if err != nil {
			a.t.Fatalf("%s does not say %s: %v", d.role, want, err)
		}
		if strings.HasPrefix(string(b[:n]), want) {
			return
		}
	}
}

// stop ends a daemon as systemd does.
func (a *apart) stop(d *daemon) {
	a.t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		a.t.Fatal(err)
	}
	a.says(d, "STOPPING=1")
	if err := d.cmd.Wait(); err != nil {
		a.t.Errorf("%s did not end well: %v", d.role, err)
	}
	_ = d.states.Close()
}

// credentials are AWS_* of the S3 server: the document's env files.
func (a *apart) credentials() (env []string) {
	for k, v := range a.s3.Env() {
		env = append(env, k+"="+v)
	}
	return env
}

const apartNamespace = "stoker"

// upApart starts all of it: Redis with TLS and passwords, Temporal behind TLS,
// two controllers, three workers.
func upApart(t *testing.T) *apart {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "deploy.md"))
	if err != nil {
		t.Fatal(err)
	}
	a := &apart{cluster: &cluster{t: t}, doc: string(doc), dir: t.TempDir(), daemons: map[string]*daemon{}, services: map[string]*service{}, taken: map[string]bool{}}
	a.cluster.dir = a.dir
	for _, d := range []string{"etc", "shared", "nvme", "run"} {
		if err := os.Mkdir(filepath.Join(a.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			a.logs()
		}
	})
	a.s3 = testenv.StartS3(t)
	redis, temporal := testenv.FreeAddress(t), a.temporalBehindTLS()
	_, redisPort, _ := net.SplitHostPort(redis)
	a.replaced = []string{
		"/etc/stoker", filepath.Join(a.dir, "etc"), "/shared/stoker", filepath.Join(a.dir, "shared"), "10.0.0.0/16", "127.0.0.0/8",
		"redis.example:6379", redis, "tls-port 6379", "tls-port " + redisPort, "temporal.example:7233", temporal,
	}
	a.sh("tokens")
	a.sh("acl")
	a.file("redis.conf", "redis.conf")
	line := strings.Fields(a.here(a.marked("run: redis")))
	a.service("redis", redis, append([]string{testenv.Program(t, line[0])}, append(line[1:], "--dir", t.TempDir())...)...)
	for k := range 2 {
		a.daemon(fmt.Sprintf("controller-%d", k+1), "10.0.0.1:7071", fmt.Sprintf("listen-socket: %s\ndir: %s\nreturn-window: 60s\n",
			a.socket("controller", k+1), filepath.Join(a.dir, fmt.Sprint("controller-", k+1))))
	}
	for k := range 3 {
		cache := filepath.Join(a.dir, "nvme", fmt.Sprint("worker-", k+1))
		a.daemon(fmt.Sprintf("worker-%d", k+1), "10.0.0.7:7070", "socket: "+a.socket("worker", k+1)+"\n", "/nvme/stoker", cache, "2TiB", "1GiB")
	}
	a.env = append(a.credentials(), "PATH="+os.Getenv("PATH"), "STOKER_SOCKET="+a.socket("worker", 1), "STOKER_CONTROLLER=unix://"+a.socket("controller", 1))
	return a
}

func (a *apart) socket(kind string, k int) string {
	return filepath.Join(a.dir, "run", fmt.Sprintf("%s-%d.sock", kind, k))
}

// daemon writes a daemon's config file, with what several on one machine need
// beyond the document's, and starts it.
func (a *apart) daemon(role, listen, lines string, more ...string) {
	a.t.Helper()
	kind, _, _ := strings.Cut(role, "-")
	config := a.file(kind+".yaml", role+".yaml", append(more, listen, testenv.FreeAddress(a.t))...)
	f, err := os.OpenFile(config, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(lines)
		_ = f.Close()
	}
	if err != nil {
		a.t.Fatal(err)
	}
	d := &daemon{role: role, config: config, log: filepath.Join(a.dir, role+".log")}
	a.daemons[role] = d
	a.t.Cleanup(func() {
		if d.cmd != nil && d.cmd.ProcessState == nil {
			_ = d.cmd.Process.Signal(syscall.SIGTERM)
			_ = d.cmd.Wait()
		}
	})
	a.start(d)
}

// reader reads all files below a view again and again, past the page cache,
// and keeps the errors with the time at which they came.
type reader struct {
	stop   chan struct{}
	done   sync.WaitGroup
	mu     sync.Mutex
	passes int
	failed []error
}

func readAgain(want map[string][32]byte, view string) *reader {
	r := &reader{stop: make(chan struct{})}
	r.done.Go(func() {
		for {
			for rel, sum := range want {
				select {
				case <-r.stop:
					return
				default:
				}
				got, err := uncached(filepath.Join(view, rel))
				if err == nil && got != sum {
					err = fmt.Errorf("%s: wrong bytes", rel)
				}
				if err != nil {
					r.mu.Lock()
					r.failed = append(r.failed, fmt.Errorf("%s: %w", time.Now().Format(time.StampMilli), err))
					r.mu.Unlock()
				}
			}
			r.mu.Lock()
			r.passes++
			r.mu.Unlock()
		}
	})
	return r
}

// errors takes the errors so far.
func (r *reader) errors() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.failed
	r.failed = nil
	return out
}

func (r *reader) passed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.passes
}

func (r *reader) end() { close(r.stop); r.done.Wait() }

// secretsApart are those of the document's files.
func (a *apart) secretsApart() map[string]string {
	a.t.Helper()
	out := map[string]string{"the S3 secret": a.s3.SecretKey}
	for name, file := range map[string]string{"a token": "tokens", "the password of Redis": "redis-password"} {
		body, err := os.ReadFile(filepath.Join(a.dir, "etc", file))
		f := strings.Fields(string(body))
		if err != nil || len(f) == 0 || len(f[len(f)-1]) < 32 {
			a.t.Fatalf("%s: %v", file, err)
		}
		out[name] = f[len(f)-1]
		if file == "tokens" {
			out["the daemons' token"] = f[1]
		}
	}
	return out
}

// noSecrets looks for them in logs, command lines and pages.
func (a *apart) noSecrets() {
	a.t.Helper()
	logs, err := filepath.Glob(filepath.Join(a.dir, "*.log"))
	if err != nil || len(logs) < 6 {
		a.t.Fatalf("logs: %v, %v", logs, err)
	}
	lines := ""
	for line := range strings.Lines(commandLines(a.t)) {
		if strings.Contains(line, a.dir) { // the S3 server is the test's, and is told its secret
			lines += line
		}
	}
	if strings.Count(lines, "stokerd ") < 5 {
		a.t.Fatalf("the daemons are not among the command lines: %s", lines)
	}
	texts := map[string]string{"command lines": lines, "pages": a.daemonPages()}
	for _, l := range logs {
		body, err := os.ReadFile(l)
		if err != nil {
			a.t.Fatal(err)
		}
		texts[filepath.Base(l)] = string(body)
	}
	for name, secret := range a.secretsApart() {
		for where, text := range texts {
			if i := strings.Index(text, secret); i >= 0 {
				a.t.Errorf("%s is in %s: …%s", name, where, bytes.TrimSpace([]byte(text[max(0, i-100):i])))
			}
		}
	}
}
