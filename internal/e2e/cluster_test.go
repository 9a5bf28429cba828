package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"stoker.dev/internal/api"
	"stoker.dev/internal/testenv"
)

// cluster is a running `stoker-dev up` whose dataset is read through a proxy
// that counts.
type cluster struct {
	t     testing.TB
	dir   string
	root  string // folder behind the S3 server; its sub-folders are buckets
	proxy *testenv.Proxy
	env   []string
}

func binary(t testing.TB, name string) string {
	t.Helper()
	return testenv.Binary(t, name)
}

// up starts a cluster over a fresh S3 folder that fill has filled.
func up(t testing.TB, workers int, capacity string, fill func(root string), more ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: filepath.Join(t.TempDir(), "d"), root: filepath.Join(t.TempDir(), "s3")}
	if err := os.MkdirAll(filepath.Join(c.root, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	fill(filepath.Join(c.root, "data"))
	races := testenv.Races(t)
	t.Cleanup(func() {
		defer races()
		if t.Failed() {
			c.logs()
		}
		c.dev("down", "--dir", c.dir)
	})
	c.dev(append([]string{"up", "--dir", c.dir, "--workers", fmt.Sprint(workers), "--capacity", capacity, "--s3-root", c.root, "--detach"}, more...)...)
	c.readEnv()
	c.proxy = testenv.CountingProxy(t, c.getenv("STOKER_S3_ENDPOINT"))
	return c
}

func (c *cluster) dev(args ...string) {
	c.t.Helper()
	cmd := exec.Command(binary(c.t, "stoker-dev"), args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("stoker-dev %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// logs prints the end of each role's log, or how it crashed.
func (c *cluster) logs() {
	files, _ := filepath.Glob(filepath.Join(c.dir, "*.log"))
	more, _ := filepath.Glob(filepath.Join(c.dir, "*", "*.log"))
	for _, f := range append(files, more...) {
		body, err := os.ReadFile(f)
		if err == nil && len(body) > 0 {
			from := max(0, len(body)-4000)
			for _, crash := range []string{"panic:", "fatal error:", "SIG"} {
				if i := bytes.Index(body, []byte(crash)); i >= 0 {
					from = i
					break
				}
			}
			c.t.Logf("%s:\n%s", f, body[from:min(len(body), from+8000)])
		}
	}
}

func (c *cluster) readEnv() {
	c.t.Helper()
	out, err := exec.Command("sh", "-c", "set -a; . "+filepath.Join(c.dir, "env")+"; env").Output()
	if err != nil {
		c.t.Fatal(err)
	}
	c.env = strings.Split(strings.TrimSpace(string(out)), "\n")
}

func (c *cluster) getenv(name string) string {
	for _, kv := range c.env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// result is how a command ended.
type result struct {
	code        int
	out, stderr string
}

// stoker runs the CLI against worker 1.
func (c *cluster) stoker(args ...string) result { return c.stokerAt(1, args...) }

// stokerAt runs the CLI against the worker with that number.
func (c *cluster) stokerAt(worker int, args ...string) result {
	c.t.Helper()
	cmd := exec.Command(binary(c.t, "stoker"), args...)
	cmd.Env = c.env
	if worker != 1 {
		cmd.Env = append(slices.Clone(c.env), "STOKER_SOCKET="+filepath.Join(c.dir, fmt.Sprintf("worker-%d", worker), "worker.sock"))
	}
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), unhurried(stderr.String())}
}

// unhurried is what a command says but for the remark that an answer takes its time:
// it is there on a busy machine only.
func unhurried(said string) string {
	var out strings.Builder
	for line := range strings.Lines(said) {
		if !strings.Contains(line, "takes its time; waiting for it") {
			out.WriteString(line)
		}
	}
	return out.String()
}

// must is stoker, failing unless the exit code is 0.
func (c *cluster) must(args ...string) string {
	c.t.Helper()
	r := c.stoker(args...)
	if r.code != 0 {
		c.t.Fatalf("stoker %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.stderr)
	}
	return r.out
}

// add registers the bucket as dataset "data", read through the proxy.
func (c *cluster) add() {
	c.t.Helper()
	c.must("dataset", "add", "data", "s3://data", "--endpoint", c.proxy.URL(), "--path-style")
}

func (c *cluster) certificate(out string) api.Certificate {
	c.t.Helper()
	var cert api.Certificate
	if err := json.Unmarshal([]byte(out), &cert); err != nil {
		c.t.Fatalf("%v in %s", err, out)
	}
	return cert
}

// makeFiles writes n small files and some large ones, with bytes that differ.
func makeFiles(t testing.TB, root string, small, smallMax, large int, largeBytes int64) (bytes int64) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, uint64(small)))
	noise := make([]byte, 4<<20)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	write := func(path string, n int64) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for left := n; left > 0; {
			at := r.IntN(len(noise) / 2)
			k := min(left, int64(len(noise)-at))
			if _, err := f.Write(noise[at : at+int(k)]); err != nil {
				t.Fatal(err)
			}
			left -= k
		}
		bytes += n
	}
	for i := range small {
		write(filepath.Join(root, fmt.Sprintf("train/n%03d/img_%06d.jpg", i%200, i)), int64(r.IntN(smallMax)))
	}
	for i := range large {
		write(filepath.Join(root, fmt.Sprintf("shards/part-%02d.tar", i)), largeBytes)
	}
	return bytes
}

// sameTree compares every file below a mount with its source, byte for byte.
func sameTree(t *testing.T, source, mount string) (files int) {
	t.Helper()
	err := filepath.WalkDir(source, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(source, p)
		if err != nil {
			return err
		}
		want, err := digest(p)
		if err != nil {
			return err
		}
		got, err := digest(filepath.Join(mount, rel))
		if err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("%s differs from its source", rel)
		}
		files++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	inMount := 0
	err = filepath.WalkDir(mount, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			inMount++
		}
		return err
	})
	if err != nil || inMount != files {
		t.Fatalf("the mount has %d files, the source %d (%v)", inMount, files, err)
	}
	return files
}

func digest(path string) ([32]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return [32]byte{}, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(h, f, make([]byte, 1<<20)); err != nil {
		return [32]byte{}, err
	}
	return [32]byte(h.Sum(nil)), nil
}
