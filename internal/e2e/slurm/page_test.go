package slurm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"stoker.dev/internal/api"
	"stoker.dev/internal/testenv"
)

// page is docs/slurm.md, followed on three hosts: one of slurmctld, which is the
// user slurm's as Debian's is, and two nodes. A host is a mount and a UTS namespace
// with its own /etc/slurm, /etc/stoker and /run/stoker.
type page struct {
	*rig
	doc     string
	text    *strings.Replacer // what the page leaves to the reader
	hosts   map[string]*process
	daemons []*process // of Slurm
}

var hostNames = []string{"head", "worker-1", "worker-2"}

// marked returns the block of the page behind a mark.
func (p *page) marked(mark string) string {
	p.t.Helper()
	_, after, ok := strings.Cut(p.doc, "<!-- "+mark+" -->\n")
	block, _, closed := strings.Cut(after[strings.Index(after, "```")+3:], "```")
	if !ok || !closed {
		p.t.Fatalf("docs/slurm.md has no block %q", mark)
	}
	return p.text.Replace(block)
}

// host makes one.
func (p *page) host(name string) {
	p.t.Helper()
	script := "set -e; hostname " + name + "; mount --bind " + p.at("bin") + " /usr/local/bin"
	for in, out := range map[string]string{"slurm": "/etc/slurm", "stoker": "/etc/stoker", "run": "/run/stoker"} {
		must(p.t, os.MkdirAll(p.at(name, in), 0o755))
		if err := os.Mkdir(out, 0o755); err == nil {
			p.t.Cleanup(func() { _ = os.Remove(out) }) // it was not there before
		} else if !errors.Is(err, fs.ErrExist) {
			p.t.Fatal(err)
		}
		script += "; mount --bind " + p.at(name, in) + " " + out
	}
	p.hosts[name] = p.start("unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", script+"; touch "+p.at(name, "up")+"; exec sleep 86400")
	p.eventually(name+" is up", func() bool { _, err := os.Stat(p.at(name, "up")); return err == nil })
}

// on makes a command of a host.
func (p *page) on(host string, args ...string) []string {
	return append([]string{"nsenter", "--mount", "--uts", fmt.Sprintf("--target=%d", p.hosts[host].cmd.Process.Pid), "--"}, args...)
}

// sh runs a block on a host, as a user; root's begin in the folder of the source.
func (p *page) sh(host, user, script string) string {
	p.t.Helper()
	source, err := filepath.Abs(filepath.Join("..", "..", ".."))
	must(p.t, err)
	begin := "cd " + source + "\n"
	if user != "root" {
		begin = "cd " + p.at("out") + "\n"
	}
	args := p.on(host, "runuser", "-u", user, "--", "sh", "-ec", begin+script)
	res := p.run(exec.Command(args[0], args[1:]...))
	if res.code != 0 {
		p.t.Fatalf("on %s, as %s: exit %d\n%s\n%s%s", host, user, res.code, script, res.out, res.stderr)
	}
	return res.out
}

// slurmd starts Slurm's daemons, or restarts them with what slurm.conf says now.
func (p *page) slurmd(conf string) {
	p.t.Helper()
	for _, d := range p.daemons {
		d.stop(p.t, syscall.SIGTERM)
	}
	p.daemons = nil
	for _, name := range hostNames {
		must(p.t, os.WriteFile(p.at(name, "slurm", "slurm.conf"), []byte(conf), 0o644))
		program := "slurmd"
		if name == "head" {
			program = "slurmctld"
		}
		args := p.on(name, program, "-D")
		p.daemons = append(p.daemons, p.start(args[0], args[1:]...))
	}
	p.eventually("both nodes are idle", func() bool {
		args := p.on("head", "sinfo", "-h", "-o", "%T %D")
		return strings.TrimSpace(p.run(exec.Command(args[0], args[1:]...)).out) == "idle 2"
	})
}

// newPage starts an empty Slurm, and a stoker beside it that knows nothing of it: a
// worker on each node, and a controller that is reached by TCP.
func newPage(t *testing.T) (*page, string) {
	for _, program := range []string{"slurmctld", "slurmd", "munged", "srun"} {
		testenv.Program(t, program)
	}
	dir, err := os.MkdirTemp("", "stoker-page-")
	must(t, err)
	r := &rig{t: t, whole: t, dir: dir, root: filepath.Join(dir, "s3")}
	t.Cleanup(r.remove)
	doc, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "slurm.md"))
	must(t, err)
	p := &page{rig: r, doc: string(doc), hosts: map[string]*process{}}
	for _, d := range []string{"", "s3/bucket/some/prefix", "log", "state", "run", "bin", "munge", "out"} {
		must(t, os.MkdirAll(r.at(d), 0o755))
		must(t, os.Chmod(r.at(d), 0o755))
	}
	for _, d := range []string{"log", "state", "run"} { // of SlurmUser, as Debian makes them
		must(t, exec.Command("chown", "slurm:", r.at(d)).Run())
	}
	must(t, os.Chown(r.at("out"), userID, groupID))
	body, err := os.ReadFile(binary(t, "stoker"))
	must(t, err)
	must(t, os.WriteFile(r.at("bin", "stoker"), body, 0o755))
	r.startStoker()
	controller := p.controller()
	var own []string
	for _, kv := range r.env { // the hosts know of stoker what the page tells them
		if !strings.HasPrefix(kv, "STOKER_") && !strings.HasPrefix(kv, "SLURM_CONF=") && !strings.HasPrefix(kv, "HOME=") && !strings.HasPrefix(kv, "AWS_") {
			own = append(own, kv)
		}
	}
	r.env = append(own, "HOME=/root")
	r.startMunge()
	for _, name := range hostNames {
		p.host(name)
	}
	for n := 1; n <= 2; n++ {
		name := fmt.Sprintf("worker-%d", n)
		r.stopWorker(n)
		args := p.on(name, binary(t, "stoker-dev"), "start", name, "--dir", r.at("stoker"))
		if res := r.run(exec.Command(args[0], args[1:]...)); res.code != 0 {
			t.Fatalf("%s does not start: %s", name, res.stderr)
		}
		must(t, os.Symlink(r.at("stoker", name, "worker.sock"), r.at(name, "run", "worker.sock")))
	}
	var conf []string
	for _, line := range strings.Split(slurmConf, "\n") {
		key, _, _ := strings.Cut(line, "=")
		if key != "BurstBufferType" && key != "Prolog" && key != "Epilog" && key != "PrologFlags" {
			conf = append(conf, line)
		}
	}
	edit := []string{"SlurmUser=root", "SlurmUser=slurm", "=$H(", "=head(", " NodeHostname=$H", "", "$D", dir}
	for n := range 3 {
		_, port, _ := strings.Cut(testenv.FreeAddress(t), ":")
		edit = append(edit, fmt.Sprintf("$P%d", n), port)
	}
	return p, strings.NewReplacer(append(edit, "https://stoker.example:7071", controller)...).Replace(strings.Join(conf, "\n"))
}

// controller starts one as a site has it, and tells where it is.
func (p *page) controller() string {
	p.t.Helper()
	var c struct {
		Ports map[string]int `json:"ports"`
	}
	body, err := os.ReadFile(p.at("stoker", "cluster.json"))
	must(p.t, err)
	must(p.t, json.Unmarshal(body, &c))
	line, err := os.ReadFile(p.at("stoker", "token"))
	must(p.t, err)
	_, daemons, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
	const nodes, users = "0123456789abcdef-of-the-nodes", "0123456789abcdef-of-the-user"
	must(p.t, os.WriteFile(p.at("tokens"), []byte("stoker "+daemons+"\nnode "+nodes+"\n"+userName+" "+users+"\n"), 0o600))
	must(p.t, os.MkdirAll(p.at("out", ".config", "stoker"), 0o755))
	must(p.t, os.WriteFile(p.at("out", "token"), []byte(userName+" "+users+"\n"), 0o644))
	must(p.t, os.WriteFile(p.at("out", ".config", "stoker", "config.yaml"), []byte("token-file: "+p.at("out", "token")+"\n"), 0o644))
	address := testenv.FreeAddress(p.t)
	env := p.env
	p.env = nil
	for _, kv := range env {
		if !strings.HasPrefix(kv, "STOKER_") {
			p.env = append(p.env, kv)
		}
	}
	p.start(binary(p.t, "stokerd"), "controller", "--temporal", fmt.Sprintf("127.0.0.1:%d", c.Ports["temporal"]), "--redis", fmt.Sprintf("127.0.0.1:%d", c.Ports["redis"]),
		"--store", p.at("stoker", "store"), "--dir", p.at("second"), "--listen", address, "--listen-socket", p.at("second.sock"), "--token-file", p.at("tokens"))
	p.env = env
	p.eventually("the controller listens", func() bool { _, err := os.Stat(p.at("second.sock")); return err == nil })
	p.text = strings.NewReplacer("https://stoker.example:7071", "http://"+address, "THE-DAEMONS-TOKEN", daemons, "THE-NODES-TOKEN", nodes)
	return "http://" + address
}

// Who follows docs/slurm.md from an empty Slurm comes to a first job: each marked
// block is run as it stands there.
func TestPage(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("it makes hosts of namespaces: run it as root")
	}
	p, conf := newPage(t)
	p.slurmd(conf)
	if out := p.sh("head", userName, "srun -N2 hostname"); !strings.Contains(out, "worker-1") || !strings.Contains(out, "worker-2") {
		t.Fatalf("the empty Slurm runs %q", out)
	}
	for n := range 12 {
		must(t, os.WriteFile(p.at("s3", "bucket", "some", "prefix", fmt.Sprintf("file%02d", n)), make([]byte, 100<<10), 0o644))
	}

	begin := time.Now()
	if out := p.sh("head", "root", p.marked("run: head")); !strings.Contains(out, "stoker-verdict ok") {
		t.Errorf("on the host of slurmctld: %q", out)
	}
	for _, node := range hostNames[1:] {
		p.sh(node, "root", p.marked("run: node"))
	}
	p.slurmd(conf + "\n" + strings.ReplaceAll(p.marked("file: slurm.conf"), "\n   ", "\n"))
	p.sh("head", "root", "stoker slurm reconcile")
	home := p.at("out")
	out := p.sh("head", userName, "export HOME="+home+"; "+p.marked("run: first"))
	t.Logf("from the empty Slurm to the first job: %v", time.Since(begin).Round(time.Millisecond))
	if strings.Count(out, "\nfile") != 10 {
		t.Errorf("the first job says %q", out)
	}
	var jobs []api.JobLine
	must(t, json.Unmarshal([]byte(p.sh("head", "root", "stoker jobs -o json --token-file /etc/stoker/slurm.token")), &jobs))
	if len(jobs) != 1 || jobs[0].Owner != userName {
		t.Errorf("claims: %+v", jobs)
	}
	if n := strings.Count(p.doc, "<!-- run: ") + strings.Count(p.doc, "<!-- file: "); n != 4 {
		t.Errorf("%d blocks of the page are marked, 4 are run", n)
	}
}
