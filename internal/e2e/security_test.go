package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"stoker.dev/internal/testenv"
)

// user is somebody else on the machine, with nothing but a uid and groups.
type user struct {
	c      *cluster
	uid    uint32
	groups []uint32 // beside the group of his own, whose number is his uid
	home   string
	stoker string // a copy of the binary that he can run, wherever the checkout is
}

// user makes one with a folder of his own.
func (c *cluster) user(uid uint32, groups ...uint32) *user {
	c.t.Helper()
	if os.Getuid() != 0 {
		testenv.Lacks(c.t, "only root can be another user")
	}
	open := filepath.Dir(filepath.Dir(c.dir)) // the test's folder is 0700
	if err := os.Chmod(open, 0o755); err != nil {
		c.t.Fatal(err)
	}
	u := &user{c: c, uid: uid, groups: groups, home: filepath.Join(open, fmt.Sprintf("home-%d", uid)), stoker: filepath.Join(open, "stoker")}
	body, err := os.ReadFile(binary(c.t, "stoker"))
	if err == nil {
		err = os.WriteFile(u.stoker, body, 0o755)
	}
	if err == nil {
		err = os.Mkdir(u.home, 0o755)
	}
	if err == nil {
		err = os.Chown(u.home, int(uid), int(uid))
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return u
}

// folder makes an empty folder of his.
func (u *user) folder(name string) string {
	u.c.t.Helper()
	dir := filepath.Join(u.home, name)
	if r := u.run("mkdir", dir); r.code != 0 {
		u.c.t.Fatal(r)
	}
	return dir
}

func (u *user) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = u.home
	cmd.Env = append(slices.DeleteFunc(slices.Clone(u.c.env), func(kv string) bool {
		return strings.HasPrefix(kv, "AWS_") || strings.HasPrefix(kv, "XDG_") || strings.HasPrefix(kv, "TMPDIR=")
	}), "HOME="+u.home)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.uid, Gid: u.uid, Groups: u.groups}}
	return cmd
}

func (u *user) run(name string, args ...string) result {
	u.c.t.Helper()
	cmd := u.command(name, args...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		u.c.t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), unhurried(stderr.String())}
}

// may runs the CLI as him and fails unless that works.
func (u *user) may(args ...string) string {
	u.c.t.Helper()
	r := u.run(u.stoker, args...)
	if r.code != 0 {
		u.c.t.Fatalf("uid %d: stoker %s: exit %d\n%s%s", u.uid, strings.Join(args, " "), r.code, r.out, r.stderr)
	}
	return r.out
}

// refused runs the CLI as him and wants the exit code, and one line on stderr
// that says why.
func (u *user) refused(code int, why string, args ...string) {
	u.c.t.Helper()
	refusal(u.c.t, u.run(u.stoker, args...), code, why, args)
}

func refusal(t testing.TB, r result, code int, why string, args []string) {
	t.Helper()
	line := strings.TrimSpace(r.stderr)
	if r.code != code || r.out != "" || !strings.HasPrefix(line, "stoker: ") || strings.Contains(line, "\n") || !strings.Contains(line, why) {
		t.Errorf("stoker %s: exit %d, want %d and %q\n%s%s", strings.Join(args, " "), r.code, code, why, r.out, r.stderr)
	}
}

// dialAs connects to a Unix socket with another effective uid and gid, of one
// thread for the time of the call.
func dialAs(id uint32, path string) (net.Conn, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	dir, err := os.Open(filepath.Dir(path)) // a path may be too long for a socket's address
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	short := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	keep := ^uintptr(0)
	take := func(id uint32) error {
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESGID, keep, uintptr(id), keep); e != 0 {
			return e
		}
		_, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, keep, uintptr(id), keep)
		return errors.Join(nil, errnoOf(e))
	}
	runtime.LockOSThread() // stays locked, and ends, if the ids cannot be taken back
	if err := take(id); err != nil {
		return nil, err
	}
	connected := syscall.Connect(fd, &syscall.SockaddrUnix{Name: short})
	if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, keep, 0, keep); e != 0 {
		return nil, e
	}
	if err := take(0); err != nil {
		return nil, err
	}
	runtime.UnlockOSThread()
	if connected != nil {
		return nil, connected
	}
	return net.FileConn(f)
}

func errnoOf(e syscall.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

// answer is what came of a request: the status, and the body, of at most 1 MiB.
type answer struct {
	status int
	body   string
}

func ask(t testing.TB, client *http.Client, method, url, body string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if len(header) == 2 {
		req.Header.Set(header[0], header[1])
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return answer{resp.StatusCode, string(got)}
}

// over is a client of a daemon's Unix socket with that uid.
func over(t testing.TB, uid uint32, socket string) *http.Client {
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return dialAs(uid, socket) }}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// denied wants 403 and a sentence that says so.
func denied(t testing.TB, what string, a answer, why string) {
	t.Helper()
	if a.status != http.StatusForbidden || !strings.Contains(a.body, `"kind":"denied"`) || !strings.Contains(a.body, why) {
		t.Errorf("%s: %d %s, want 403 and %q", what, a.status, strings.TrimSpace(a.body), why)
	}
}

const (
	alice = 12345
	nosy  = 65534
)

// Another user of the node sees none of the cluster's files but those made
// for him, mounts over nobody's folder, ends nobody's view, job or dataset,
// and gives no order to a daemon.
func TestAnotherUserIsKeptOut(t *testing.T) {
	c := up(t, 1, "256MiB", func(root string) { makeFiles(t, root, 40, 64<<10, 0, 0) })
	a, n := c.user(alice, 5000), c.user(nosy)
	c.add()
	c.must("preload", "data", "--wait")
	t.Run("files", func(t *testing.T) { filesAreHidden(t, c, n) })
	t.Run("mounts", func(t *testing.T) { mountsAreOwned(t, c, a, n) })
	t.Run("data", func(t *testing.T) { dataIsOwned(t, c, a, n) })
	t.Run("sockets", func(t *testing.T) { socketsAreGuarded(t, c) })
	t.Run("listener", func(t *testing.T) { listenersWantTokens(t, c) })
}

// filesAreHidden: below the cluster's folder another user can read the
// manifests, the logs and the environment made for him.
func filesAreHidden(t *testing.T, c *cluster, n *user) {
	for _, dir := range []string{"worker-1/cache", "controller", "temporal", "redis"} {
		if r := n.run("ls", filepath.Join(c.dir, dir)); r.code == 0 || !strings.Contains(r.stderr, "Permission denied") {
			t.Errorf("uid %d can list %s: %s%s", n.uid, dir, r.out, r.stderr)
		}
	}
	readable := strings.Fields(n.run("find", c.dir, "-type", "f", "-readable").out)
	if len(readable) == 0 {
		t.Fatal("find sees nothing")
	}
	for _, f := range readable {
		rel := strings.TrimPrefix(f, c.dir+"/")
		if ext := filepath.Ext(rel); rel != "env" && ext != ".pid" && ext != ".log" && !strings.HasPrefix(rel, "store/") {
			t.Errorf("uid %d can read %s", n.uid, rel)
		}
	}
	if out := n.run("find", c.dir, "-writable", "-not", "-type", "s", "-not", "-type", "l").out; out != "" {
		t.Errorf("uid %d can write %s", n.uid, out)
	}
}

func mountsAreOwned(t *testing.T, c *cluster, a, n *user) {
	mine, theirs := a.folder("mine"), n.folder("theirs")
	link := filepath.Join(a.home, "link")
	if r := a.run("ln", "-s", theirs, link); r.code != 0 {
		t.Fatal(r)
	}
	a.refused(10, "belongs to uid 65534", "mount", "data", theirs)
	a.refused(10, "belongs to uid 0", "mount", "data", t.TempDir())
	a.refused(2, "is not a folder", "mount", "data", link)
	a.refused(2, "not empty", "mount", "data", a.home)
	a.refused(10, "only root", "mount", "data", mine, "--uid", "0")
	a.refused(10, "no member of group 0", "mount", "data", mine, "--gid", "0")
	a.refused(10, "no member of group 65534", "mount", "data", mine, "--gid", "65534")
	if got := c.mounts(); got != 0 {
		t.Errorf("%d mounts after nothing but refusals", got)
	}
	a.may("mount", "data", mine, "--gid", "5000", "--umask", "0077") // he is a member of it
	if out := a.run("find", mine, "-not", "-uid", "12345", "-o", "-not", "-gid", "5000").out; out != "" {
		t.Errorf("not his files: %s", out)
	}
	if r := a.run("sh", "-c", "cat $(find "+mine+" -type f) >/dev/null"); r.code != 0 {
		t.Errorf("the owner cannot read: %s", r.stderr)
	}
	if r := n.run("ls", mine); r.code == 0 {
		t.Errorf("with umask 0077 another user lists %s", r.out)
	}
	n.refused(10, "was mounted by uid 12345", "umount", mine)
	busy := a.command("sleep", "600")
	busy.Dir = filepath.Join(mine, "train")
	if err := busy.Start(); err != nil {
		t.Fatal(err)
	}
	a.refused(11, "still uses it", "umount", mine)
	_ = busy.Process.Kill()
	_ = busy.Wait()
	refusal(t, c.stoker("evict", "data"), 11, "is held by", []string{"evict", "data"})
	movedMount(t, c, a, mine)
}

// movedMount: who owns the folder above his view cannot make the worker
// unmount what belongs to somebody else.
func movedMount(t *testing.T, c *cluster, a *user, mine string) {
	a.may("umount", mine)
	base := a.folder("a")
	view := filepath.Join(base, "b")
	victim := t.TempDir()
	root := filepath.Join(victim, "b")
	if r := a.run("mkdir", view); r.code != 0 {
		t.Fatal(r)
	}
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	c.must("mount", "data", root) // root's
	a.may("mount", "data", view)
	if r := a.run("sh", "-c", "mv a away && ln -s "+victim+" a"); r.code != 0 {
		t.Fatal(r)
	}
	socket := c.getenv("STOKER_SOCKET")
	got := ask(t, over(t, alice, socket), http.MethodDelete, "http://stoker/v1/mounts?dir="+view, "")
	if got.status != http.StatusNoContent || !served(root) || served(filepath.Join(a.home, "away", "b")) {
		t.Errorf("umount of a moved view: %d %s; root's view stands: %v", got.status, got.body, served(root))
	}
	c.must("umount", root)
}

func dataIsOwned(t *testing.T, c *cluster, a, n *user) {
	a.may("dataset", "add", "hers", "s3://data/train", "--endpoint", c.proxy.URL(), "--path-style")
	n.refused(10, "belongs to uid-12345", "evict", "hers")
	n.refused(10, "belongs to uid-12345", "evict", "hers", "--force")
	a.refused(10, "belongs to root", "evict", "data")
	n.may("preload", "hers", "--wait") // reading is for all
	job := a.command(a.stoker, "submit", "--dataset", "hers", "--job-id", "hers", "--", "sleep", "600")
	if err := job.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = job.Process.Signal(os.Interrupt); _ = job.Wait() }()
	c.eventually("her job runs", func() bool {
		for _, j := range c.jobs() {
			if j.Job == "hers" && j.State == "Leased" {
				return j.Owner == "uid-12345"
			}
		}
		return false
	})
	n.refused(10, "belongs to uid-12345", "cancel", "hers")
	r := n.run(n.stoker, "submit", "--dataset", "data", "--job-id", "hers", "--", "true")
	if r.code != 10 || !strings.Contains(r.stderr, "belongs to uid-12345") {
		t.Errorf("a claim under her job's id: exit %d\n%s", r.code, r.stderr)
	}
	a.refused(11, "hers", "evict", "hers")
}

// orders is what only root and the cluster's daemons may tell a worker.
func orders() [][3]string {
	id := strings.Repeat("ab", 32)
	return [][3]string{
		{"PUT", "/v1/reservations/" + id + "/0", `{}`}, {"DELETE", "/v1/reservations/" + id + "/0", ""},
		{"PUT", "/v1/loads/" + id + "/0", `{}`}, {"DELETE", "/v1/loads/" + id + "/0", ""},
		{"PUT", "/v1/leases", `{"drop":["x"]}`}, {"PUT", "/v1/rules", `{"rules":[],"all":true}`}, {"POST", "/v1/evict", `{"manifest":"` + id + `","force":true}`},
		{"GET", "/v1/manifests/" + id + "/shards/0/blocks", ""},
		{"PUT", "/v1/drain", `{}`}, {"DELETE", "/v1/drain", ""}, {"POST", "/v1/drop", `{"manifest":"` + id + `","shards":[0]}`},
	}
}

func socketsAreGuarded(t *testing.T, c *cluster) {
	socket := c.getenv("STOKER_SOCKET")
	him, root := over(t, nosy, socket), over(t, 0, socket)
	for _, o := range orders() {
		denied(t, o[0]+" "+o[1], ask(t, him, o[0], "http://stoker"+o[1], o[2]), "only root and the cluster's daemons may")
	}
	for daemon, socket := range map[string]string{"worker": socket, "controller": strings.TrimPrefix(c.getenv("STOKER_CONTROLLER"), "unix://")} {
		for _, p := range []string{"", "heap", "cmdline", "profile", "goroutine?debug=2"} {
			denied(t, daemon+"'s pprof", ask(t, over(t, nosy, socket), "GET", "http://stoker/debug/pprof/"+p, ""), "only root")
		}
		if got := ask(t, over(t, 0, socket), "GET", "http://stoker/debug/pprof/cmdline", ""); got.status != http.StatusOK || !strings.Contains(got.body, daemon) {
			t.Errorf("%s: root's pprof: %d", daemon, got.status)
		}
		if got := ask(t, over(t, nosy, socket), "GET", "http://stoker/metrics", ""); got.status != http.StatusOK || !strings.Contains(got.body, "stoker_") {
			t.Errorf("%s: /metrics for any user: %d", daemon, got.status)
		}
	}
	if got := ask(t, root, "PUT", "http://stoker/v1/leases", `{"drop":["nobody"]}`); got.status != http.StatusNoContent {
		t.Errorf("root gives the same order: %d %s", got.status, got.body)
	}
}

// listenersWantTokens: by TCP nothing is answered without a known token, and
// no daemon listens off loopback without a file of them.
func listenersWantTokens(t *testing.T, c *cluster) {
	address := c.workers()[0].Address
	plain := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	asks := append(orders(), [3]string{"GET", "/v1/version", ""}, [3]string{"GET", "/v1/status", ""}, [3]string{"GET", "/metrics", ""},
		[3]string{"GET", "/v1/doctor", ""}, [3]string{"POST", "/v1/verify", "{}"}, [3]string{"POST", "/v1/mounts", "{}"}, [3]string{"GET", "/debug/pprof/", ""})
	token := c.token()
	for _, h := range [][]string{nil, {"Authorization", "Bearer " + strings.Repeat("0", len(token))}, {"Authorization", "Basic " + token}, {"Authorization", token}} {
		for _, o := range asks {
			denied(t, fmt.Sprintf("%s %s with %q", o[0], o[1], h), ask(t, plain, o[0], address+o[1], o[2], h...), "no known token came with the request: set --token-file")
		}
	}
	bearer := []string{"Authorization", "Bearer " + token}
	if got := ask(t, plain, "GET", address+"/v1/status", "", bearer...); got.status != http.StatusOK {
		t.Errorf("with the token: %d %s", got.status, got.body)
	}
	for _, path := range []string{"/debug/pprof/", "/v1/mounts"} { // of the node alone
		if got := ask(t, plain, "GET", address+path, "", bearer...); got.status != http.StatusNotFound {
			t.Errorf("%s by TCP: %d", path, got.status)
		}
	}
	for role, more := range map[string][]string{
		"worker":     {"--cache-dir", t.TempDir(), "--socket", filepath.Join(t.TempDir(), "s"), "--advertise", "http://127.0.0.1:1"},
		"controller": {"--dir", t.TempDir(), "--listen-socket", filepath.Join(t.TempDir(), "s")},
	} {
		cmd := exec.Command(binary(t, "stokerd"), append([]string{role, "--listen", "0.0.0.0:0", "--redis", "127.0.0.1:" + c.redisPort(), "--redis-prefix", "x", "--store", t.TempDir()}, more...)...)
		out, err := cmd.CombinedOutput()
		if err == nil || cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), "not a loopback address: give a token file") {
			t.Errorf("%s on 0.0.0.0 without tokens: %v\n%s", role, err, out)
		}
	}
}

// token is the daemons'.
func (c *cluster) token() string {
	c.t.Helper()
	body, err := os.ReadFile(filepath.Join(c.dir, "token"))
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.Fields(string(body))[1]
}

// secrets are what may stand in no log, payload, command line or page.
func (c *cluster) secrets() map[string]string {
	c.t.Helper()
	secret := c.getenv("AWS_SECRET_ACCESS_KEY")
	if len(secret) < 20 {
		c.t.Fatalf("no secret to look for: %q", secret)
	}
	return map[string]string{"the S3 secret": secret, "the daemons' token": c.token()}
}

// The credentials of the store and the token stand in the files made for
// them, whatever is done with the cluster, and nowhere else: no log, no payload
// of Temporal, nothing in Redis, no command line, no page.
func TestSecretsStayInTheirFiles(t *testing.T) {
	c := up(t, 2, "256MiB", func(root string) { makeFiles(t, root, 60, 64<<10, 0, 0) })
	c.add()
	if err := os.Remove(filepath.Join(c.root, "data", "train", "n000", "img_000000.jpg")); err != nil { // errors are told, too
		t.Fatal(err)
	}
	dir := t.TempDir()
	pages := c.stoker("preload", "data", "--wait", "-o", "json").out
	pages += c.must("submit", "--dataset", "data", "--job-id", "seen-in-payloads", "--", "true")
	c.must("mount", "data", dir)
	commands := commandLines(t)
	pages += c.stoker("dataset", "add", "wrong", "s3://no-such-bucket", "--endpoint", c.proxy.URL(), "--path-style").stderr
	pages += c.stoker("dataset", "add", "wrong", "s3://user:"+c.getenv("AWS_SECRET_ACCESS_KEY")+"@data").stderr
	pages += c.stoker("dataset", "add", "wrong", "s3://data", "--endpoint", "http://user:"+c.getenv("AWS_SECRET_ACCESS_KEY")+"@127.0.0.1:1").stderr
	for _, args := range [][]string{{"status"}, {"status", "seen-in-payloads"}, {"jobs"}, {"workers"}, {"dataset", "ls"}, {"dataset", "show", "data"}, {"doctor"}, {"verify", "data"}} {
		pages += c.stoker(append(args, "-o", "json")...).out
	}
	pages += c.daemonPages()
	c.must("umount", dir)
	redis := c.redisDump()
	c.dev("down", "--dir", c.dir) // so that all is on the disk
	for name, secret := range c.secrets() {
		for where, text := range map[string]string{"pages": pages, "command lines": commands, "Redis": redis} {
			if i := strings.Index(text, secret); i >= 0 {
				t.Errorf("%s is in the %s: …%s", name, where, text[max(0, i-200):i])
			}
		}
		c.filesWithout(name, secret)
	}
	// What was looked through is what had to be.
	for what, in := range map[string]bool{
		"commands of this cluster": strings.Contains(commands, c.dir), "pages with the job": strings.Contains(pages, "seen-in-payloads"),
		"metrics": strings.Contains(pages, "stoker_ufs_"), "workers in Redis": strings.Contains(redis, "worker.sock"),
		"payloads": c.below("temporal", "seen-in-payloads"), "logs": c.below("controller.log", "seen-in-payloads"),
	} {
		if !in {
			t.Errorf("the search did not see: %s", what)
		}
	}
}

// commandLines is what ps shows.
func commandLines(t testing.TB) (all string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if line, err := os.ReadFile(f); err == nil { // else it has just ended
			all += strings.ReplaceAll(string(line), "\x00", " ") + "\n"
		}
	}
	return all
}

// daemonPages is what the daemons show to any user of the node.
func (c *cluster) daemonPages() (all string) {
	c.t.Helper()
	for _, socket := range []string{c.getenv("STOKER_SOCKET"), strings.TrimPrefix(c.getenv("STOKER_CONTROLLER"), "unix://")} {
		for _, page := range []string{"/metrics", "/v1/status", "/v1/doctor", "/v1/version"} {
			got := ask(c.t, over(c.t, 0, socket), "GET", "http://stoker"+page, "")
			if got.status != http.StatusOK {
				c.t.Errorf("%s: %d %s", page, got.status, got.body)
			}
			all += got.body
		}
	}
	return all
}

// redisDump is every key with its value.
func (c *cluster) redisDump() (all string) {
	c.t.Helper()
	cli := func(args ...string) string {
		out, err := exec.Command(testenv.Program(c.t, "redis-cli"), append([]string{"-p", c.redisPort()}, args...)...).Output()
		if err != nil {
			c.t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	get := map[string][]string{"string": {"get"}, "hash": {"hgetall"}, "set": {"smembers"}, "list": {"lrange", "0", "-1"}, "zset": {"zrange", "0", "-1"}, "stream": {"xrange", "-", "+"}}
	for _, key := range strings.Fields(cli("--scan")) {
		how, ok := get[cli("type", key)]
		if !ok {
			continue // it has just gone
		}
		all += key + "\n" + cli(append([]string{how[0], key}, how[1:]...)...) + "\n"
	}
	return all
}

// filesWithout looks for a secret in all files below the cluster's folder but
// those that are there to hold it.
func (c *cluster) filesWithout(name, secret string) {
	c.t.Helper()
	for _, f := range c.filesWith("", secret) {
		switch f {
		case "cluster.json", "token", "env":
		default:
			c.t.Errorf("%s is in %s", name, f)
		}
	}
}

// below reports whether a text stands in some file below a folder of it.
func (c *cluster) below(dir, text string) bool { return len(c.filesWith(dir, text)) > 0 }

func (c *cluster) filesWith(dir, text string) (found []string) {
	c.t.Helper()
	err := filepath.WalkDir(filepath.Join(c.dir, dir), func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.HasSuffix(p, ".shard") {
			return err
		}
		body, err := os.ReadFile(p)
		if err == nil && bytes.Contains(body, []byte(text)) {
			rel, _ := filepath.Rel(c.dir, p)
			found = append(found, rel)
		}
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return found
}

// The files that hold secrets are for root alone; D/env is made to be shared.
func TestSecretFilesArePrivate(t *testing.T) {
	c := up(t, 1, "64MiB", func(root string) { makeFiles(t, root, 1, 1<<10, 0, 0) })
	for name, want := range map[string]fs.FileMode{
		"cluster.json": 0o600, "token": 0o600, "worker-1/cache": 0o700, "controller": 0o700, "temporal": 0o700, "redis": 0o700, ".": 0o755,
		"controller.sock": 0o666, "worker-1/worker.sock": 0o666,
	} {
		fi, err := os.Lstat(filepath.Join(c.dir, name))
		if err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: %v, want %s (%v)", name, fi.Mode(), strconv.FormatUint(uint64(want), 8), err)
		}
	}
	var d struct{ Secret string }
	body, err := os.ReadFile(filepath.Join(c.dir, "cluster.json"))
	if err == nil {
		err = json.Unmarshal(body, &d)
	}
	if err != nil || d.Secret == "" || d.Secret != c.getenv("AWS_SECRET_ACCESS_KEY") {
		t.Errorf("cluster.json has not the secret that the others are searched for (%v)", err)
	}
}
