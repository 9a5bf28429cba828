package slurm

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"stoker.dev/internal/testenv"
)

// The user of the jobs, one that Debian always has; Slurm gives root no burst
// buffers.
const (
	userName = "games"
	userID   = 5
	groupID  = 60
)

const patience = 3 * time.Minute // with other processes on a loaded machine

// rig is a Slurm of one slurmctld and two nodes, and a stoker of two workers, one
// on each node, called as the node is. A node is a mount namespace: both mount the jobs' data at the same
// place, as nodes do, and nothing of it is seen outside.
type rig struct {
	t     testing.TB // of the test that uses it now
	whole testing.TB // of that which made it
	dir   string     // everything is below it
	root  string     // folder behind the S3 server
	proxy *testenv.Proxy
	env   []string // of stoker and of Slurm's commands

	ctld  *process
	nodes []*process
	ports []string
}

// process is a daemon that ends with the test.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

func binary(t testing.TB, name string) string {
	t.Helper()
	return testenv.Binary(t, name)
}

// newRig starts all of it. The data of every dataset comes through a proxy that
// counts and can be stopped.
func newRig(t testing.TB) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("these tests start daemons that change users and mount: run them as root")
	}
	for _, p := range []string{"slurmctld", "slurmd", "munged", "sbatch", "runc", "busybox"} {
		testenv.Program(t, p)
	}
	dir, err := os.MkdirTemp("", "stoker-slurm-")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, whole: t, dir: dir, root: filepath.Join(dir, "s3")}
	t.Cleanup(r.remove)
	for _, d := range []string{"", "s3/data", "etc", "log", "state", "run", "bin", "jobs", "node-1", "node-2", "munge", "out"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
		must(t, os.Chmod(filepath.Join(dir, d), 0o755))
	}
	must(t, os.Chmod(filepath.Join(dir, "out"), 0o1777))
	body, err := os.ReadFile(binary(t, "stoker"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "bin", "stoker"), body, 0o755)) // the job's user runs it, too
	r.startStoker()
	r.startMunge()
	r.configure(nil)
	r.startCtld()
	r.startNodes()
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// at is a path below the rig's folder.
func (r *rig) at(elem ...string) string { return filepath.Join(append([]string{r.dir}, elem...)...) }

func (r *rig) dev(args ...string) {
	r.t.Helper()
	if out, err := exec.Command(binary(r.t, "stoker-dev"), args...).CombinedOutput(); err != nil {
		r.t.Fatalf("stoker-dev %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (r *rig) startStoker() {
	r.t.Helper()
	r.t.Cleanup(func() {
		if r.t.Failed() {
			r.logs()
		}
		r.dev("down", "--dir", r.at("stoker"))
	})
	r.dev("up", "--dir", r.at("stoker"), "--workers", "2", "--capacity", "256MiB", "--s3-root", r.root, "--detach")
	out, err := exec.Command("sh", "-c", "set -a; . "+r.at("stoker", "env")+"; env").Output()
	must(r.t, err)
	for _, kv := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		if !strings.HasPrefix(kv, "PATH=") && !strings.HasPrefix(kv, "SLURM") && !strings.HasPrefix(kv, "HOME=") && !strings.HasPrefix(kv, "XDG_") && !strings.HasPrefix(kv, "TMPDIR=") {
			r.env = append(r.env, kv)
		}
	}
	r.env = append(r.env, "PATH="+r.at("bin")+":"+os.Getenv("PATH")+":/usr/sbin:/sbin", "SLURM_CONF="+r.at("etc", "slurm.conf"), "STOKER_SLURM_MOUNT_ROOT="+r.at("jobs"), "STOKER_SLURM_PATIENCE=3s", "HOME="+r.at("out"))
	r.proxy = testenv.CountingProxy(r.t, r.getenv("STOKER_S3_ENDPOINT"))
}

func (r *rig) getenv(name string) string {
	for _, kv := range r.env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// start runs a daemon in the foreground until the test ends.
func (r *rig) start(name string, args ...string) *process {
	r.t.Helper()
	log, err := os.OpenFile(r.at("log", filepath.Base(name)+".out"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(r.t, err)
	defer log.Close()
	p := &process{cmd: exec.Command(name, args...), ended: make(chan struct{})}
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = r.env, log, log, r.dir
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	must(r.t, p.cmd.Start())
	go func() { _ = p.cmd.Wait(); close(p.ended) }()
	r.whole.Cleanup(func() { p.stop(r.whole, syscall.SIGKILL) })
	return p
}

// stop ends a daemon with a signal; one that does not heed it is killed, and
// reported.
func (p *process) stop(t testing.TB, sig syscall.Signal) {
	t.Helper()
	_ = p.cmd.Process.Signal(sig) // it may have ended
	select {
	case <-p.ended:
	case <-time.After(patience):
		_ = p.cmd.Process.Kill()
		<-p.ended
		t.Errorf("%s does not end by %v", p.cmd.Path, sig)
	}
}

func (r *rig) startMunge() {
	r.t.Helper()
	key := make([]byte, 1024)
	_, err := rand.Read(key)
	must(r.t, err)
	must(r.t, os.Mkdir(r.at("munge", "private"), 0o700))
	must(r.t, os.WriteFile(r.at("munge", "private", "key"), key, 0o600))
	socket := r.at("munge", "socket")
	r.start("munged", "--foreground", "--force", "--key-file="+r.at("munge", "private", "key"), "--socket="+socket,
		"--pid-file="+r.at("munge", "private", "pid"), "--log-file="+r.at("munge", "private", "log"), "--seed-file="+r.at("munge", "private", "seed"))
	r.eventually("munge answers", func() bool { _, err := os.Stat(socket); return err == nil })
}

// configure writes Slurm's files: those of deploy/slurm as they are, but for what
// change, of burst_buffer.conf, says.
func (r *rig) configure(change map[string]string) {
	r.t.Helper()
	host, err := os.Hostname()
	must(r.t, err)
	host, _, _ = strings.Cut(host, ".")
	if r.ports == nil {
		for range 3 {
			_, port, _ := strings.Cut(testenv.FreeAddress(r.t), ":")
			r.ports = append(r.ports, port)
		}
	}
	conf := strings.NewReplacer("$D", r.dir, "$H", host, "$P0", r.ports[0], "$P1", r.ports[1], "$P2", r.ports[2]).Replace(slurmConf)
	must(r.t, os.WriteFile(r.at("etc", "slurm.conf"), []byte(conf), 0o644))
	for _, f := range []string{"burst_buffer.lua", "burst_buffer.conf", "prolog", "epilog"} {
		body, err := os.ReadFile(filepath.Join("..", "..", "..", "deploy", "slurm", f))
		must(r.t, err)
		for key, value := range change {
			if f == "burst_buffer.conf" {
				body = append(body, []byte("\n"+key+"="+value+"\n")...)
			}
		}
		must(r.t, os.WriteFile(r.at("etc", f), body, 0o755))
	}
	for _, f := range []string{"prolog", "epilog"} { // what /etc/stoker/config.yaml says on a node
		body := fmt.Sprintf("#!/bin/sh\nset -a\n. %s\nSTOKER_SOCKET=%s/$SLURMD_NODENAME/worker.sock\nPATH=%s\nSLURM_CONF=%s\nSTOKER_SLURM_MOUNT_ROOT=%s\nexec %s >>%s 2>&1\n",
			r.at("stoker", "env"), r.at("stoker"), r.getenv("PATH"), r.getenv("SLURM_CONF"), r.at("jobs"), r.at("etc", f), r.at("log", f+".out"))
		must(r.t, os.WriteFile(r.at("etc", "node-"+f), []byte(body), 0o755))
	}
}

const slurmConf = `ClusterName=ci
SlurmctldHost=$H(127.0.0.1)
SlurmctldPort=$P0
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$D/munge/socket
CredType=cred/munge
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool-%n
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=$D/run/slurmd-%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd-%n.log
SlurmctldDebug=debug
DebugFlags=BurstBuffer
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,sched_min_interval=200000,bf_max_job_test=50
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
KillWait=3
MailProg=/bin/true
BurstBufferType=burst_buffer/lua
Prolog=$D/etc/node-prolog
Epilog=$D/etc/node-epilog
PrologFlags=Alloc
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE State=UP
NodeName=worker-1 NodeHostname=$H NodeAddr=127.0.0.1 Port=$P1 CPUs=4 RealMemory=2048
NodeName=worker-2 NodeHostname=$H NodeAddr=127.0.0.1 Port=$P2 CPUs=4 RealMemory=2048
`

func (r *rig) startCtld() {
	r.t.Helper()
	r.ctld = r.start("slurmctld", "-D", "-f", r.at("etc", "slurm.conf"))
	r.eventually("slurmctld answers", func() bool { return r.slurm("scontrol", "ping").code == 0 })
}

// startNodes moves each worker into a mount namespace and starts a slurmd beside
// it.
func (r *rig) startNodes() {
	r.t.Helper()
	for n := 1; n <= 2; n++ {
		r.stopWorker(n)
		script := fmt.Sprintf("set -e; mount --bind %s %s; %s start worker-%d --dir %s; exec slurmd -D -N worker-%d -f %s",
			r.at(fmt.Sprintf("node-%d", n)), r.at("jobs"), binary(r.t, "stoker-dev"), n, r.at("stoker"), n, r.at("etc", "slurm.conf"))
		r.nodes = append(r.nodes, r.start("unshare", "--mount", "--propagation", "private", "sh", "-c", script))
	}
	r.eventually("both nodes are idle", func() bool { return strings.TrimSpace(r.slurm("sinfo", "-h", "-o", "%T %D").out) == "idle 2" })
}

func (r *rig) stopWorker(n int) {
	r.t.Helper()
	body, err := os.ReadFile(r.at("stoker", fmt.Sprintf("worker-%d", n), "worker.pid"))
	must(r.t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(body)))
	must(r.t, err)
	must(r.t, syscall.Kill(pid, syscall.SIGTERM))
	r.eventually("the worker has stopped", func() bool { return !alive(pid) })
}

// kill ends a role of stoker as a crash does.
func (r *rig) kill(role string) {
	r.t.Helper()
	body, err := os.ReadFile(r.at("stoker", role+".pid"))
	must(r.t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(body)))
	must(r.t, err)
	must(r.t, syscall.Kill(pid, syscall.SIGKILL))
	r.eventually(role+" is dead", func() bool { return !alive(pid) })
}

// alive reports whether a process runs; a zombie does not.
func alive(pid int) bool {
	line, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	return err == nil && len(line) > 0
}

// eventually waits for other processes, on which nothing here can wait.
func (r *rig) eventually(what string, is func() bool) {
	r.t.Helper()
	for end := time.Now().Add(patience); !is(); {
		if time.Now().After(end) {
			r.t.Fatalf("never came true: %s\n%s", what, r.slurm("sinfo", "-R").out+r.slurm("scontrol", "show", "job").out)
		}
		<-time.After(50 * time.Millisecond)
	}
}

// comes waits for what a channel tells of, such as that the store stands still.
func (r *rig) comes(what string, c <-chan struct{}) {
	r.t.Helper()
	r.eventually(what, func() bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	})
}

// remove ends what jobs left behind and removes the folder.
func (r *rig) remove() {
	if err := os.RemoveAll(r.dir); err != nil {
		r.t.Logf("%s stays behind: %v", r.dir, err)
	}
}

func (r *rig) logs() {
	files, _ := filepath.Glob(r.at("log", "*"))
	more, _ := filepath.Glob(r.at("stoker", "*.log"))
	for _, f := range append(files, more...) {
		body, err := os.ReadFile(f)
		if err == nil && len(body) > 0 {
			r.t.Logf("%s:\n%s", f, body[max(0, len(body)-6000):])
		}
	}
}

// result is how a command ended.
type result struct {
	code        int
	out, stderr string
}

func (r *rig) run(cmd *exec.Cmd) result {
	r.t.Helper()
	var out, stderr bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = r.env, &out, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		r.t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), stderr.String()}
}

// slurm runs a command of Slurm as root.
func (r *rig) slurm(name string, args ...string) result {
	r.t.Helper()
	return r.run(exec.Command(name, args...))
}

// as runs a command as the jobs' user.
func (r *rig) as(name string, args ...string) result {
	r.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = r.at("out")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: userID, Gid: groupID}}
	return r.run(cmd)
}

// stoker runs the CLI as root.
func (r *rig) stoker(args ...string) result {
	r.t.Helper()
	return r.run(exec.Command(r.at("bin", "stoker"), args...))
}

func (r *rig) must(args ...string) string {
	r.t.Helper()
	res := r.stoker(args...)
	if res.code != 0 {
		r.t.Fatalf("stoker %s: exit %d\n%s%s", strings.Join(args, " "), res.code, res.out, res.stderr)
	}
	return res.out
}

// dataset makes a dataset of n files of 256 KiB each.
func (r *rig) dataset(name string, n int) (size int64) {
	r.t.Helper()
	noise := make([]byte, 256<<10)
	for i := range n {
		_, err := rand.Read(noise)
		must(r.t, err)
		p := filepath.Join(r.root, "data", name, fmt.Sprintf("n%02d", i%4), fmt.Sprintf("img_%05d.jpg", i))
		must(r.t, os.MkdirAll(filepath.Dir(p), 0o755))
		must(r.t, os.WriteFile(p, noise, 0o644))
		size += int64(len(noise))
	}
	r.must("dataset", "add", name, "s3://data/"+name, "--endpoint", r.proxy.URL(), "--path-style")
	return size
}

// submit hands in a script of the given lines and returns the job's id.
func (r *rig) submit(lines string, flags ...string) string {
	r.t.Helper()
	res := r.try(lines, flags...)
	if res.code != 0 {
		r.t.Fatalf("sbatch: exit %d\n%s%s", res.code, res.out, res.stderr)
	}
	return strings.TrimSpace(res.out)
}

func (r *rig) try(lines string, flags ...string) result {
	r.t.Helper()
	f, err := os.CreateTemp(r.at("out"), "job-*.sh")
	must(r.t, err)
	_, err = f.WriteString("#!/bin/sh\n" + lines + "\n")
	must(r.t, errors.Join(err, f.Chmod(0o755), f.Close()))
	return r.as("sbatch", append(append([]string{"--parsable", "--output=" + r.at("out", "%j.out")}, flags...), f.Name())...)
}
