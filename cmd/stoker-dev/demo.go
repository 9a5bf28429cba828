package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	sdklog "go.temporal.io/sdk/log"
)

const (
	demoBucket = "demo"
	demoEpochs = 3
	demoRanks  = 2
)

func demoCommand() *cobra.Command {
	var dir string
	var keep bool
	cmd := &cobra.Command{
		Use: "demo", Short: "show the whole of it on this machine: preload, train, report", Args: noArgs,
		Long: `Brings a cluster with 3 workers up, serves a dataset made of the Go distribution by
S3, submits a job that trains on it, then a second one, evicts, and reports what
was measured. Takes a minute or two and 2 GB of disk; everything is removed in
the end. Needs root and /dev/fuse, for the mounts.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := canMount(); err != nil {
				return err
			}
			if dir == "" {
				var err error
				if dir, err = os.MkdirTemp("", "stoker-demo-"); err != nil {
					return err
				}
				if err := os.Chmod(dir, dirMode); err != nil {
					return err
				}
				if !keep {
					defer func() { _ = os.RemoveAll(dir) }() // what is left is in the machine's folder for such
				}
			}
			d := &demo{ctx: cmd.Context(), dir: dir, began: time.Now()}
			err := d.run()
			return errors.Join(err, downDir(filepath.Join(dir, "cluster")))
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "folder to work in, and to leave behind (default a temporary one)")
	cmd.Flags().BoolVar(&keep, "keep", false, "leave the temporary folder behind")
	return cmd
}

// canMount says what is missing for FUSE mounts.
func canMount() error {
	if os.Geteuid() != 0 {
		return errors.New("the demo mounts file systems and needs root: run it as root, or in a container with --device /dev/fuse --cap-add SYS_ADMIN")
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("the demo needs /dev/fuse (%w): modprobe fuse, or give the container --device /dev/fuse --cap-add SYS_ADMIN", err)
	}
	return f.Close()
}

type demo struct {
	ctx   context.Context
	dir   string
	began time.Time

	c     *cluster
	proxy *proxy
	data  *dataset
	bin   string // folder of the binaries
}

func (d *demo) step(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "\n[%5.1f s] %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demo) run() (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	d.bin = filepath.Dir(self)
	d.step("making a dataset of the Go distribution's files")
	if d.data, err = makeDataset(d.ctx, filepath.Join(d.dir, "s3", demoBucket), filepath.Join(d.dir, "sums.json")); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%d files, %s\n", d.data.files, human(d.data.bytes))
	d.step("bringing up Temporal, Redis, an S3 server, a controller and 3 workers")
	o := &upOptions{dir: filepath.Join(d.dir, "cluster"), workers: 3, capacity: "2GiB", s3Root: filepath.Join(d.dir, "s3"), detach: true,
		changed: func(string) bool { return true }}
	if err := up(d.ctx, o); err != nil {
		return err
	}
	if d.c, err = openCluster(o.dir); err != nil {
		return err
	}
	if d.proxy, err = startProxy("http://" + d.c.address("s3")); err != nil {
		return err
	}
	defer d.proxy.Close()
	r, err := d.story()
	if err != nil {
		return err
	}
	r.print(os.Stdout, d)
	return r.judge(d)
}

// story is what a user would do.
func (d *demo) story() (*report, error) {
	r := &report{}
	d.step("stoker dataset add %s s3://%s", demoBucket, demoBucket)
	if _, err := d.stoker("dataset", "add", demoBucket, "s3://"+demoBucket, "--endpoint", d.proxy.URL, "--path-style"); err != nil {
		return nil, err
	}
	self := filepath.Join(d.bin, "stoker-dev")
	result := filepath.Join(d.dir, "epochs.json")
	d.step("stoker submit --dataset %s -- train (%d epochs, %d processes, shuffled, every byte verified)", demoBucket, demoEpochs, demoRanks)
	submitted := time.Now()
	if _, err := d.stoker("submit", "--dataset", demoBucket, "--", self, "train", "--sums", d.data.sums, "--counts", d.proxy.Counts, "--result", result); err != nil {
		return nil, err
	}
	body, err := os.ReadFile(result)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(body, &r.train); err != nil {
		return nil, err
	}
	r.ready = r.train.Started.Sub(submitted)
	r.loaded = r.train.Epochs[0].Before
	d.step("the same epoch from S3 directly, and from the local disk")
	if r.direct, err = d.compare("s3://" + demoBucket); err != nil {
		return nil, err
	}
	if r.local, err = d.compare(filepath.Join(d.dir, "s3", demoBucket)); err != nil {
		return nil, err
	}
	d.step("a second job on the same data")
	before, second := d.proxy.count(), time.Now()
	if _, err := d.stoker("submit", "--dataset", demoBucket, "--", "true"); err != nil {
		return nil, err
	}
	r.second, r.secondBytes = time.Since(second), d.proxy.count().Bytes-before.Bytes
	r.redis, r.temporal = d.redis(), d.temporal()
	d.step("stoker evict %s", demoBucket)
	out, err := d.stoker("evict", demoBucket, "-o", "json")
	if err != nil {
		return nil, err
	}
	var freed struct{ Bytes int64 }
	err = json.Unmarshal(out, &freed)
	r.freed = freed.Bytes
	return r, err
}

// stoker runs the command line as a user would; what it says on stderr is
// shown, progress and all.
func (d *demo) stoker(args ...string) ([]byte, error) {
	cmd := exec.CommandContext(d.ctx, filepath.Join(d.bin, "stoker"), args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Env = append(os.Environ(), d.c.env()...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("stoker %s: %w", strings.Join(args[:min(2, len(args))], " "), err)
	}
	return out, nil
}

// compare reads one epoch from elsewhere, in the same way.
func (d *demo) compare(from string) (epoch, error) {
	return runEpoch(d.ctx, epochOptions{sums: d.data.sums, from: from, epoch: 1, env: append(os.Environ(), d.c.env()...)})
}

// redis asks how much Redis holds.
func (d *demo) redis() string {
	conn, err := net.DialTimeout("tcp", d.c.address("redis"), time.Second)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second)) // a TCP connection takes one
	fmt.Fprint(conn, "DBSIZE\r\nINFO memory\r\n")
	keys, used := "?", ""
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		if n, ok := strings.CutPrefix(line, ":"); ok && keys == "?" {
			keys = n
		}
		if n, ok := strings.CutPrefix(line, "used_memory_dataset:"); ok {
			if v, err := strconv.ParseInt(n, 10, 64); err == nil {
				used = ", " + human(v)
			}
			break
		}
		if strings.HasPrefix(line, "-") { // the in-process server knows no INFO memory
			break
		}
	}
	return keys + " keys" + used
}

// temporal asks how much Temporal holds.
func (d *demo) temporal() string {
	ctx, cancel := context.WithTimeout(d.ctx, 5*time.Second)
	defer cancel()
	t, err := client.DialContext(ctx, client.Options{HostPort: d.c.address("temporal"), Logger: noLog{}})
	if err != nil {
		return err.Error()
	}
	defer t.Close()
	all, err := t.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{PageSize: 1000, Query: "ExecutionStatus != 'Running'"})
	if err != nil {
		return err.Error()
	}
	var events, size, n int64
	for _, e := range all.Executions {
		if !strings.HasPrefix(e.Execution.WorkflowId, "temporal-") {
			n, events, size = n+1, events+e.HistoryLength, size+e.HistorySizeBytes
		}
	}
	return fmt.Sprintf("%d ended workflows, %d events, %s of history", n, events, human(size))
}

type noLog struct{}

var _ sdklog.Logger = noLog{}

func (noLog) Debug(string, ...any) {}
func (noLog) Info(string, ...any)  {}
func (noLog) Warn(string, ...any)  {}
func (noLog) Error(string, ...any) {}

func human(n int64) string {
	switch {
	case n < 10_000:
		return fmt.Sprintf("%d B", n)
	case n < 10_000_000:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%.1f MB", float64(n)/1e6)
}
