package e2e

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	"stoker.dev/internal/api"
	"stoker.dev/internal/testenv"
)

// temporalBehindTLS starts a Temporal with the document's namespace, and before
// it what ends TLS. It makes the certificates, those of Redis too.
func (a *apart) temporalBehindTLS() (address string) {
	a.t.Helper()
	certs := testenv.MakeCerts(a.t)
	for as, from := range map[string]string{"ca.pem": certs.CA, "redis.pem": certs.ServerCert, "redis.key": certs.ServerKey} {
		body, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(a.dir, "etc", as), body, 0o640)
		}
		if err != nil {
			a.t.Fatal(err)
		}
	}
	plain, dir := testenv.FreeAddress(a.t), filepath.Join(a.dir, "temporal")
	_, port, _ := net.SplitHostPort(plain)
	err := os.Mkdir(dir, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "cluster.json"), []byte(`{"ports":{"temporal":`+port+`}}`), 0o600)
	}
	if err != nil {
		a.t.Fatal(err)
	}
	a.service("temporal", plain, binary(a.t, "stoker-dev"), "serve", "temporal", "--dir", dir)
	ns, err := client.NewNamespaceClient(client.Options{HostPort: plain, Logger: silent{}})
	if err != nil {
		a.t.Fatal(err)
	}
	defer ns.Close()
	a.eventually("the namespace is there", func() bool {
		err := ns.Register(a.t.Context(), &workflowservice.RegisterNamespaceRequest{Namespace: apartNamespace, WorkflowExecutionRetentionPeriod: durationpb.New(168 * time.Hour)})
		return err == nil || strings.Contains(err.Error(), "already exists")
	})
	pair, err := tls.LoadX509KeyPair(certs.ServerCert, certs.ServerKey)
	if err != nil {
		a.t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}})
	if err != nil {
		a.t.Fatal(err)
	}
	passThrough(a.t, l, plain)
	return l.Addr().String()
}

// passThrough hands connections on until the test ends.
func passThrough(t testing.TB, l net.Listener, to string) {
	var passing sync.WaitGroup
	over := make(chan struct{})
	passing.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			passing.Go(func() {
				defer in.Close()
				out, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer out.Close()
				ended := make(chan struct{}, 2) // one for each way
				go func() { _, _ = io.Copy(out, in); ended <- struct{}{} }()
				go func() { _, _ = io.Copy(in, out); ended <- struct{}{} }()
				select {
				case <-ended:
				case <-over:
				}
			})
		}
	})
	t.Cleanup(func() { close(over); _ = l.Close(); passing.Wait() })
}

// uncached is the digest of a file, whose pages leave the cache afterwards, so
// that the next reading asks the worker again.
func uncached(path string) (sum [32]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sum, err
	}
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	return [32]byte(h.Sum(nil)), nil
}

// digests are those of all files below a folder, by their paths in it.
func digests(t *testing.T, root string) map[string][32]byte {
	t.Helper()
	out := map[string][32]byte{}
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err == nil {
			out[rel], err = digest(p)
		}
		return err
	})
	if err != nil || len(out) == 0 {
		t.Fatalf("%d files, %v", len(out), err)
	}
	return out
}

// at runs the CLI with a variable more.
func (a *apart) at(env []string, args ...string) (*exec.Cmd, *strings.Builder) {
	a.t.Helper()
	cmd := exec.Command(binary(a.t, "stoker"), args...)
	var out strings.Builder
	cmd.Env, cmd.Stdout, cmd.Stderr = append(a.env[:len(a.env):len(a.env)], env...), &out, &out
	if err := cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, &out
}

// alice is a user elsewhere, of the second controller.
func (a *apart) alice() []string {
	a.t.Helper()
	tokens, err := os.ReadFile(filepath.Join(a.dir, "etc", "tokens"))
	if err != nil {
		a.t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(tokens), "\nalice ")
	file := filepath.Join(a.t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(line), 0o600); err != nil {
		a.t.Fatal(err)
	}
	config, err := os.ReadFile(a.daemons["controller-2"].config)
	if err != nil {
		a.t.Fatal(err)
	}
	_, listen, _ := strings.Cut(string(config), "\nlisten: ")
	listen, _, _ = strings.Cut(listen, "\n")
	return []string{"STOKER_CONTROLLER=http://" + listen, "STOKER_TOKEN_FILE=" + file}
}

// job submits one that runs until it is interrupted, on worker k.
func (a *apart) job(k int) (view string, end func()) {
	a.t.Helper()
	view = filepath.Join(a.t.TempDir(), "view")
	id := fmt.Sprint("job-", k)
	cmd, said := a.at([]string{"STOKER_SOCKET=" + a.socket("worker", k)}, "submit", "--dataset", "data="+view, "--job-id", id, "--view", "tree", "--", "sleep", "10000")
	a.inState(id, api.JobLeased)
	return view, func() {
		a.t.Helper()
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 130 {
			a.t.Errorf("%s ended with %v: %s", id, err, said)
		}
	}
}

// The cluster of docs/deploy.md, by its own commands, as separate services
// with TLS and passwords. Each worker and controller is stopped and started in
// turn while jobs read through every worker's view, past the page cache, and a
// preload runs: no read fails but those through the view of the very worker
// that is away, and that view is right again once it is back. Then Redis and Temporal
// in the same way: no read fails at all. No claim is lost; the preload ends
// Ready. No secret is in a log, a page or a command line.
func TestApart(t *testing.T) {
	a := upApart(t)
	a.allTaken()
	makeFiles(t, a.s3.Bucket(t, "data"), 150, 64<<10, 1, 70<<20)
	size := makeFiles(t, a.s3.Bucket(t, "more"), 300, 64<<10, 4, 40<<20)
	a.proxy = testenv.CountingProxy(t, a.s3.Endpoint)
	a.eventually("a dataset can be added", func() bool { // Temporal learns of a new namespace
		return a.stoker("dataset", "add", "data", "s3://data", "--endpoint", a.s3.Endpoint, "--path-style").code == 0
	})
	a.must("dataset", "add", "more", "s3://more", "--endpoint", a.proxy.URL(), "--path-style")
	a.must("preload", "data", "--wait")
	want := digests(t, filepath.Join(a.s3.Root, "data"))
	views, readers := map[string]string{}, map[string]*reader{}
	var ends []func()
	for k := range 3 {
		role := fmt.Sprint("worker-", k+1)
		view, end := a.job(k + 1)
		views[role], readers[role] = view, readAgain(want, view)
		ends = append(ends, end)
	}
	preload, said := a.at(a.alice(), "preload", "more", "--wait", "-o", "json")
	roles := []string{"worker-1", "worker-2", "worker-3", "controller-1", "controller-2", "redis", "temporal"}
	for i, role := range roles {
		reached, release := a.proxy.Hold(size * int64(i+1) / int64(len(roles)+2))
		select {
		case <-reached: // the preload is in the middle of it
		case <-time.After(2 * time.Minute):
			release()
			t.Fatalf("the preload stands still before %s: %s", role, said)
		}
		if a.services[role] != nil {
			a.restartService(role, readers)
		} else {
			a.restart(role, views, readers)
		}
		release()
	}
	if err := preload.Wait(); err != nil {
		t.Fatalf("preload: %v: %s", err, said)
	}
	var cert api.Certificate
	out := said.String()
	if err := json.Unmarshal([]byte(out[max(0, strings.Index(out, "{")):]), &cert); err != nil || cert.State != api.CertificateReady || cert.ResidentBytes != size {
		t.Errorf("%v in %s", err, out)
	}
	for role, r := range readers {
		r.end()
		if failed := r.errors(); len(failed) > 0 || r.passed() < 2 {
			t.Errorf("%s: %d passes, at last %d reads failed: %v", role, r.passed(), len(failed), failed[:min(3, len(failed))])
		}
	}
	for k := range 3 {
		if s := a.state(fmt.Sprint("job-", k+1)); s != api.JobLeased {
			t.Errorf("job %d has lost its claim: %s", k+1, s)
		}
	}
	if r := a.stoker("evict", "data"); r.code != 11 {
		t.Errorf("held data was evicted: exit %d %s%s", r.code, r.out, r.stderr)
	}
	a.noSecrets()
	for _, end := range ends {
		end()
	}
	a.settled()
}

// restart stops a daemon and starts it again. Readers of other workers' views
// notice nothing; its own come back by themselves.
func (a *apart) restart(role string, views map[string]string, readers map[string]*reader) {
	a.t.Helper()
	a.stop(a.daemons[role])
	if view := views[role]; view != "" {
		if err := syscall.Statfs(view, new(syscall.Statfs_t)); err != syscall.ENOTCONN {
			a.t.Errorf("the view of %s, which is stopped: %v, want ENOTCONN", role, err)
		}
	}
	a.start(a.daemons[role])
	if views[role] != "" {
		a.eventually("the view of "+role+" is served again", func() bool { return served(views[role]) })
		for _, err := range readers[role].errors() {
			if strings.Contains(err.Error(), "wrong bytes") {
				a.t.Errorf("the view of %s while it is away: %v", role, err)
			}
		}
	}
	for other, r := range readers {
		passes := r.passed()
		a.eventually("all is read through "+other, func() bool { return r.passed() >= passes+2 })
		if failed := r.errors(); len(failed) > 0 && other != role {
			a.t.Errorf("while %s was restarted, %d reads through %s failed: %v", role, len(failed), other, failed[:min(3, len(failed))])
		} else if len(failed) > 1 { // one may have begun before it was back
			a.t.Errorf("%s is back, but %d reads through it failed: %v", role, len(failed), failed[:min(3, len(failed))])
		}
	}
}

// restartService stops Redis or Temporal and starts it again, with the same
// address and folder. All is read through every view meanwhile and afterwards.
func (a *apart) restartService(name string, readers map[string]*reader) {
	a.t.Helper()
	s := a.services[name]
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		a.t.Fatal(err)
	}
	_ = s.cmd.Wait() // how it ends is its own affair
	if listens(s.address) {
		a.t.Fatalf("%s is stopped, and somebody listens at %s", name, s.address)
	}
	a.readThroughAll("while "+name+" is away", readers)
	a.serve(s)
	a.readThroughAll("since "+name+" is back", readers)
	for k := range readers {
		id := "job-" + strings.TrimPrefix(k, "worker-")
		a.inState(id, api.JobLeased)
	}
}

// readThroughAll waits until every reader has read all once from its beginning.
func (a *apart) readThroughAll(when string, readers map[string]*reader) {
	a.t.Helper()
	for through, r := range readers {
		passes := r.passed()
		a.eventually(when+", all is read through "+through, func() bool { return r.passed() >= passes+2 })
		if failed := r.errors(); len(failed) > 0 {
			a.t.Errorf("%s, %d reads through %s failed: %v", when, len(failed), through, failed[:min(3, len(failed))])
		}
	}
}
