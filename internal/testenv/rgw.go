package testenv

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A fresh Ceph takes about 15 s to be ready on two cores, several times that
// where they are shared.
const rgwPatience = 4 * time.Minute

// cephConf is a cluster of one monitor and one OSD in memory, and a gateway,
// on loopback: no authentication, hence no encrypted connections, which need
// it; one copy of everything; no manager, which only reports. %[1]s is its
// folder, %[2]s its id, %[3]s the monitor's addresses.
const cephConf = `[global]
fsid = %[2]s
mon_host = %[3]s
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_cluster_mode = crc
ms_mon_service_mode = crc
ms_mon_client_mode = crc
ms_cluster_mode = crc
ms_service_mode = crc
ms_client_mode = crc
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
run_dir = %[1]s
crash_dir = %[1]s
pid_file =
admin_socket =
log_file = %[1]s/$name.log
mon_cluster_log_file = /dev/null
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
osd_crush_chooseleaf_type = 0
osd_objectstore = memstore
osd_class_load_list = *
osd_class_default_list = *
rgw_thread_pool_size = 64
[mon.a]
mon_data = %[1]s/mon
[osd.0]
osd_data = %[1]s/osd
[client.rgw]
rgw_data = %[1]s/rgw
`

// ceph is the cluster behind a gateway.
type ceph struct {
	t   testing.TB
	dir string
}

// StartRGW starts a Ceph cluster of one OSD in memory with a RADOS gateway
// before it, and sets the AWS environment of the test to a user's credentials.
// It has no Root: make buckets through its API.
func StartRGW(t testing.TB) *S3 {
	t.Helper()
	c := ceph{t, t.TempDir()}
	for _, p := range []string{"ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool", "ceph"} {
		Program(t, p)
	}
	monitor := FreeAddress(t)
	mons := fmt.Sprintf("[v2:%s,v1:%s]", FreeAddress(t), monitor)
	cluster, osd := newUUID(), newUUID()
	for _, d := range []string{"mon", "osd", "rgw"} {
		if err := os.Mkdir(filepath.Join(c.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(c.conf(), fmt.Appendf(nil, cephConf, c.dir, cluster, mons), 0o644); err != nil {
		t.Fatal(err)
	}

	monmap := filepath.Join(c.dir, "monmap")
	c.do("monmaptool", "--create", "--fsid", cluster, "--addv", "a", mons, monmap)
	c.do("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap)
	c.serve(monitor, "ceph-mon", "-i", "a", "-f")
	c.do("ceph", "osd", "new", osd)
	c.do("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
	c.serve(monitor, "ceph-osd", "-i", "0", "-f") // has no address of its own to wait for: the next command waits for it

	s := &S3{AccessKey: "stoker-test", SecretKey: "stoker-test-secret"}
	c.do("radosgw-admin", "-n", "client.rgw", "user", "create", "--uid", "stoker", "--display-name", "stoker",
		"--access-key", s.AccessKey, "--secret-key", s.SecretKey)
	address := FreeAddress(t)
	c.serve(address, "radosgw", "-n", "client.rgw", "-f", "--rgw-frontends", "beast endpoint="+address)
	s.Endpoint = "http://" + address
	s.setenv(t)
	return s
}

func (c ceph) conf() string { return filepath.Join(c.dir, "ceph.conf") }

func (c ceph) command(ctx context.Context, name string, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, Program(c.t, name), append([]string{"-c", c.conf()}, args...)...)
	cmd.Env = append(os.Environ(), "CEPH_ARGS=") // nobody's cluster but this
	return cmd
}

// do runs a command to its end.
func (c ceph) do(name string, args ...string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), rgwPatience)
	defer cancel()
	cmd := c.command(ctx, name, args)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("%s %s: %v\n%s\n%s", name, strings.Join(args, " "), err, out, c.logs())
	}
}

// serve runs a daemon until the test ends.
func (c ceph) serve(address, name string, args ...string) {
	c.t.Helper()
	startWithin(c.t, rgwPatience, address, c.command(context.Background(), name, args))
}

// logs is the end of what each daemon says.
func (c ceph) logs() string {
	const most = 2000 // bytes
	var out strings.Builder
	files, _ := filepath.Glob(filepath.Join(c.dir, "*.log")) // the pattern is well formed
	for _, f := range files {
		body, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		fmt.Fprintf(&out, "--- %s\n%s\n", filepath.Base(f), body[max(0, len(body)-most):])
	}
	return out.String()
}

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
