package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"stoker.dev/internal/testenv"
)

// daemon starts a stokerd as a service of its own, with the cluster's AWS
// environment, until the test ends or stops it.
func (c *cluster) daemon(args ...string) *exec.Cmd {
	c.t.Helper()
	cmd := exec.Command(binary(c.t, "stokerd"), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	for _, kv := range c.env {
		if !strings.HasPrefix(kv, "STOKER_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		if c.t.Failed() {
			c.t.Logf("stokerd %s:\n%s", args[0], said.String())
		}
	})
	return cmd
}

// The manifest store may be in S3: two controllers and a worker that share
// nothing else list, preload, verify and mount from there.
func TestManifestStoreInS3(t *testing.T) {
	c := up(t, 1, "256MiB", func(root string) {
		makeFiles(t, root, 300, 50<<10, 1, 70<<20)
		if err := os.Mkdir(filepath.Join(filepath.Dir(root), "manifests"), 0o755); err != nil {
			t.Fatal(err)
		}
	})
	dir := t.TempDir()
	store := "s3://manifests/of/this?path-style&endpoint=" + c.getenv("STOKER_S3_ENDPOINT")
	common := []string{"--redis", "127.0.0.1:" + c.redisPort(), "--redis-prefix", "other", "--store", store, "--token-file", filepath.Join(c.dir, "token")}
	sockets := []string{filepath.Join(dir, "a.sock"), filepath.Join(dir, "b.sock")}
	for _, s := range sockets {
		c.daemon(append([]string{"controller", "--temporal", "127.0.0.1:" + c.port("temporal"), "--cluster", "other", "--dir", s + ".d", "--listen-socket", s}, common...)...)
	}
	address := testenv.FreeAddress(t)
	socket := filepath.Join(dir, "w.sock")
	c.daemon(append([]string{"worker", "--cache-dir", filepath.Join(dir, "cache"), "--capacity", "256MiB", "--listen", address, "--socket", socket}, common...)...)
	at := func(n int) { c.env = append(c.env, "STOKER_CONTROLLER=unix://"+sockets[n], "STOKER_SOCKET="+socket) }
	at(0)
	c.eventually("a worker is there", func() bool {
		_, err := os.Stat(sockets[1])
		r := c.stoker("workers", "-o", "json")
		return err == nil && r.code == 0 && strings.Contains(r.out, `"live"`)
	})
	c.add()
	at(1)
	cert := c.certificate(c.must("preload", "data", "--wait", "-o", "json"))
	if cert.State != "Ready" || cert.UFSBytes != cert.Bytes {
		t.Errorf("%+v", cert)
	}
	if err := os.WriteFile(filepath.Join(c.root, "data", "train", "new"), []byte("more"), 0o644); err != nil {
		t.Fatal(err)
	}
	c.must("dataset", "sync", "data")
	c.must("preload", "data", "--wait")
	c.must("verify", "data", "--deep")
	view := t.TempDir()
	c.must("mount", "data", view)
	sameTree(t, filepath.Join(c.root, "data"), view)
	c.must("umount", view)
	var kept []string
	err := filepath.WalkDir(filepath.Join(c.root, "manifests", "of", "this"), func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			kept = append(kept, p)
		}
		return err
	})
	if err != nil || len(kept) < 4 { // two manifests, a plan, the registry
		t.Errorf("kept: %q, %v", kept, err)
	}
	c.must("dataset", "rm", "data")
}
