package slurm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"stoker.dev/internal/testenv"
)

// lua calls one function of burst_buffer.lua as slurmctld does and returns what it
// answers: "0", "0 BUSY" or "-1 TEXT".
func lua(t *testing.T, env []string, call string) string {
	t.Helper()
	file, err := filepath.Abs(filepath.Join("..", "..", "..", "deploy", "slurm", "burst_buffer.lua"))
	must(t, err)
	program := fmt.Sprintf(`slurm = {SUCCESS = 0, ERROR = -1, log_info = function() end, log_error = function() end}
dofile(%q)
local rc, text = %s
io.write(rc, text and " " .. text or "")`, file, call)
	cmd := exec.Command(testenv.Program(t, "lua5.1"), "-e", program)
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", call, err, out)
	}
	return string(out)
}

// From 24.05 on Slurm polls: the stage-in returns at once, and the data is there
// when a poll says so. The Slurm here is older: its version is pretended, and an
// interpreter stands for it.
func polls(t *testing.T, r *rig) {
	size := r.dataset("polled", 20)
	must(t, os.MkdirAll(r.at("newer"), 0o755))
	must(t, os.WriteFile(r.at("newer", "scontrol"), []byte("#!/bin/sh\necho slurm 24.05.2\n"), 0o755))
	script := r.at("out", "polled.sh")
	must(t, os.WriteFile(script, []byte("#!/bin/sh\n#STOKER dataset=polled onmiss=wait\n"), 0o644))
	env := append([]string{}, r.env...)
	for i, kv := range env {
		if path, ok := strings.CutPrefix(kv, "PATH="); ok {
			env[i] = "PATH=" + r.at("newer") + ":" + path
		}
	}
	r.proxy.Reset()
	reached, release := r.proxy.Hold(size / 2)
	defer release()
	args := fmt.Sprintf("('4711', %q, '5', '60', {})", script) // more than 22.05 gives
	for _, call := range []string{fmt.Sprintf("slurm_bb_job_process(%q, '5', '60', {})", script), fmt.Sprintf("slurm_bb_setup('4711', '5', '60', '', '0', %q, {})", script), "slurm_bb_data_in" + args} {
		if got := lua(t, env, call); got != "0" {
			t.Errorf("%s: %q", call, got)
		}
	}
	r.comes("the store stands still", reached)
	if got := lua(t, env, "slurm_bb_test_data_in"+args); got != "0 BUSY" {
		t.Errorf("half of the data is there, and a poll says %q", got)
	}
	r.eventually("bbstat tells how far it is", func() bool { // what users see may be half a second old
		return strings.Contains(lua(t, env, "slurm_bb_get_status('5', '60', '4711')"), "slurm-ci-4711: Warming")
	})
	release()
	r.eventually("a poll says that the data is there", func() bool { return lua(t, env, "slurm_bb_test_data_in"+args) == "0" })
	if got := r.proxy.Bytes(); got != size {
		t.Errorf("%d of %d bytes", got, size)
	}
	if got := lua(t, env, fmt.Sprintf("slurm_bb_job_teardown('4711', %q, 'false', '5', '60')", script)); got != "0" {
		t.Errorf("teardown: %q", got)
	}
	r.released("4711")
}

// A hook that was killed, or says what it likes, is no success; no word of a user
// reaches a shell.
func TestOnlyAVerdictIsSuccess(t *testing.T) {
	dir := t.TempDir()
	env := []string{"PATH=" + dir + ":" + os.Getenv("PATH")}
	for said, want := range map[string]string{
		`echo stoker-verdict ok`:                                    "0",
		`echo words; echo stoker-verdict ok claimed; echo more >&2`: "0",
		`echo stoker-verdict busy`:                                  "0 BUSY",
		`echo stoker-verdict error "no such data"; exit 3`:          "-1 no such data",
		`kill -9 $$`:                         "-1 stoker: data-in was stopped",
		`kill -TERM $$`:                      "-1 stoker: data-in was stopped",
		`exit 0`:                             "-1 stoker: data-in was stopped",
		`echo ready`:                         "-1 stoker: data-in was stopped",
		`printf 'stoker-verdict ok'`:         "-1 stoker: data-in was stopped",
		`echo x stoker-verdict ok`:           "-1 stoker: data-in was stopped",
		`echo stoker-verdict maybe`:          "-1 stoker: data-in was stopped",
		`exec 2>&1; exec /no/such/program 7`: "-1 stoker: data-in was stopped",
	} {
		must(t, os.WriteFile(filepath.Join(dir, "stoker"), []byte("#!/bin/sh\n"+said+"\n"), 0o755))
		if got := lua(t, env, "slurm_bb_data_in('7', '/script')"); !strings.HasPrefix(got, want) || want == "0" && got != want {
			t.Errorf("%s: %q, want %q", said, got, want)
		}
	}
	proof := filepath.Join(dir, "was-here")
	must(t, os.WriteFile(filepath.Join(dir, "stoker"), []byte("#!/bin/sh\nfor a; do printf '<%s>' \"$a\"; done >"+dir+"/args\necho stoker-verdict ok\n"), 0o755))
	for _, evil := range []string{"$(touch " + proof + ")", "`touch " + proof + "`", "'; touch " + proof + "; '", "a\nb", "\\'", "--help", "", "a b", "\x01\xff"} {
		if got := lua(t, env, fmt.Sprintf("slurm_bb_data_in('7', %s)", luaString(evil))); got != "0" {
			t.Errorf("%q: %q", evil, got)
		}
		args, err := os.ReadFile(filepath.Join(dir, "args"))
		if want := "<slurm><data-in><--job><7><--script><" + evil + ">"; err != nil || string(args) != want {
			t.Errorf("stoker was run with %q (%v), want %q", args, err, want)
		}
	}
	for uid, want := range map[string]string{"'1000'": "<--uid><1000>", "1000": "<--uid><1000>", "'x y'": "", "nil": "", "{}": ""} { // 23.02 and newer tell it
		lua(t, env, "slurm_bb_pre_run('7', 's', "+uid+", '60', {})")
		if args, err := os.ReadFile(filepath.Join(dir, "args")); err != nil || string(args) != "<slurm><pre-run><--job><7><--script><s>"+want {
			t.Errorf("of the user %s stoker was told %q (%v)", uid, args, err)
		}
	}
	if _, err := os.Stat(proof); err == nil {
		t.Error("a word was run by a shell")
	}
}

// luaString writes any bytes as a string of Lua.
func luaString(s string) string {
	var b strings.Builder
	b.WriteByte('\'')
	for i := range len(s) {
		fmt.Fprintf(&b, "\\%03d", s[i])
	}
	b.WriteByte('\'')
	return b.String()
}
