package slurm

import (
	"cmp"
	"context"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"stoker.dev"
)

const (
	defaultRoot = "/run/stoker/jobs"
	defaultTTL  = 7 * 24 * time.Hour
	minTTL      = time.Minute
	maxTTL      = 30 * 24 * time.Hour
)

// flags are those that the hooks share.
type flags struct {
	cluster, id, script, root, file string
	directives                      []string
	uid, gid                        int
	ttl, patience                   time.Duration
}

// Command makes 'stoker slurm' and the commands below it, one for each hook. usage
// makes an error of the command line.
func Command(env Env, usage func(cmd *cobra.Command, format string, args ...any) error) *cobra.Command {
	var f flags
	root := &cobra.Command{
		Use:   "slurm HOOK",
		Short: "what Slurm's hooks run (deploy/slurm)",
		Long: `What the files of deploy/slurm run: one command for each hook of Slurm. They read
the '#STOKER dataset=NAME' lines of a job, hold it until its data is there, mount
the data on its nodes and let it go. docs/slurm.md says how to install them.

Their token is /etc/stoker/slurm.token if that is there, and neither --token-file nor
STOKER_TOKEN_FILE names another; else it is that of all commands.

What burst_buffer.lua runs ends with one line on stdout: 'stoker-verdict' and ok,
busy or error, with a sentence.`,
		Example: `  stoker slurm show 4711
  stoker slurm reconcile`,
	}
	for _, h := range hookCommands {
		root.AddCommand(h.command(env, &f, usage))
	}
	return root
}

// hookCommand is one command below slurm.
type hookCommand struct {
	use, short, long, example string
	flags                     string // of flags: j(ob) s(cript) u(id) d(irectives) f(ile) t(tl) p(atience) r(oot)
	run                       func(ctx context.Context, h *hooks, f *flags) error
}

var hookCommands = []hookCommand{
	{"check", "when a job is submitted: are its directives right, is its data known?",
		`Reads the directives of --script, or those of --directive, and asks the controller,
for 300 ms at most, whether the datasets are there and can ever fit. A controller
that does not answer in time refuses no job. With --uid it also asks whether that user
may read them.`,
		`  stoker slurm check --script job.sh
  stoker slurm check --uid 1000 --directive '#STOKER dataset=imagenet deadline=30m'`, "sdu",
		func(ctx context.Context, h *hooks, f *flags) error { return h.check(ctx, f.directives) }},
	{"setup", "before the stage-in: claim the data",
		`Claims the job's datasets. The claim lives for --ttl unless it is repeated.`,
		`  stoker slurm setup --job 4711 --script /var/spool/slurmctld/hash.1/job.4711/script --uid 1000`, "jsut",
		func(ctx context.Context, h *hooks, _ *flags) error { return h.setup(ctx) }},
	{"data-in", "the stage-in: wait until the data is there",
		`Claims what is not claimed yet and waits until it is there, or, if Slurm polls (24.05
and newer), returns. If nobody answers for --patience, a job with onmiss=start is
let go without its data; all others wait until Slurm's own time is up.`,
		`  stoker slurm data-in --job 4711 --script /var/spool/slurmctld/hash.1/job.4711/script --uid 1000`, "jsutp",
		func(ctx context.Context, h *hooks, _ *flags) error { return h.dataIn(ctx) }},
	{"test-data-in", "one poll of the stage-in",
		`Says whether the data is there, or busy.`,
		`  stoker slurm test-data-in --job 4711 --script /var/spool/slurmctld/hash.1/job.4711/script --uid 1000`, "jsutp",
		func(ctx context.Context, h *hooks, _ *flags) error { return h.testDataIn(ctx) }},
	{"paths", "the job's environment",
		`Writes STOKER_MOUNT and STOKER_JOB to --file. It asks nobody.`,
		`  stoker slurm paths --job 4711 --script /var/spool/slurmctld/hash.1/job.4711/script --file /tmp/env`, "jsfr",
		func(_ context.Context, h *hooks, f *flags) error { return h.paths(f.file) }},
	{"pre-run", "the nodes are chosen: is the claim still there?",
		`Claims once more. A job that cannot start without its data waits if it has gone.`,
		`  stoker slurm pre-run --job 4711 --script /var/spool/slurmctld/hash.1/job.4711/script --uid 1000`, "jsutp",
		func(ctx context.Context, h *hooks, _ *flags) error { return h.preRun(ctx) }},
	{"teardown", "the job has ended: release the data, with grace",
		`Ends the claim. The data stays, and for the controller's grace it is evicted last.`,
		`  stoker slurm teardown --job 4711 --script /var/spool/slurmctld/hash.1/job.4711/script`, "jst",
		func(ctx context.Context, h *hooks, _ *flags) error { return h.teardown(ctx) }},
	{"prolog", "on each node: mount the data",
		`Mounts the job's datasets below --mount-root, or where mount= says, as root. The
job is found in SLURM_JOB_ID, SLURM_JOB_UID and SLURM_JOB_GID. It fails only if
the node is at fault: Slurm drains it then. A job that asks for what cannot be is
held, with the reason as its comment.`,
		`  stoker slurm prolog`, "r",
		func(ctx context.Context, h *hooks, f *flags) error { return h.prolog(ctx, f.gid) }},
	{"epilog", "on each node: unmount the data",
		`Unmounts what prolog mounted for SLURM_JOB_ID, lazily if the job left something
behind that uses it.`,
		`  stoker slurm epilog`, "r",
		func(ctx context.Context, h *hooks, _ *flags) error { return h.epilog(ctx) }},
	{"show [JOB]", "how far a job's data is, or that of all ('scontrol show bbstat')",
		`Prints state, bytes, rate and when the data will be there.`,
		`  stoker slurm show 4711`, "",
		func(ctx context.Context, h *hooks, _ *flags) error { return h.show(ctx) }},
	{"reconcile", "compare the claims with Slurm's queue (every few minutes)",
		`Releases the claims of jobs that Slurm does not have any more, and lets those of
the others live on for --ttl. While Slurm does not answer nothing is released.
Run it on the host of slurmctld, from a timer.`,
		`  stoker slurm reconcile`, "t",
		func(ctx context.Context, h *hooks, _ *flags) error { return h.reconcile(ctx) }},
}

func (c hookCommand) command(env Env, f *flags, usage func(*cobra.Command, string, ...any) error) *cobra.Command {
	cmd := &cobra.Command{Use: c.use, Short: c.short, Long: c.long, Example: c.example}
	name := cmd.Name()
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 || len(args) == 1 && name != "show" {
			return usage(cmd, "too many words")
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if name == "prolog" || name == "epilog" {
			f.node(env.Getenv)
		}
		if len(args) == 1 {
			f.id = args[0]
		}
		h, err := f.hooks(cmd, env, usage)
		if err != nil {
			return err
		}
		return c.run(cmd.Context(), h, f)
	}
	fs := cmd.Flags()
	fs.StringVar(&f.cluster, "cluster", "", "name of the cluster (default SLURM_CLUSTER_NAME, else slurm.conf's)")
	f.uid, f.gid, f.ttl = -1, -1, defaultTTL
	for _, k := range c.flags {
		switch k {
		case 'j':
			fs.StringVar(&f.id, "job", "", "id of the job")
		case 's':
			fs.StringVar(&f.script, "script", "", "the job's script, where Slurm keeps it")
		case 'd':
			fs.StringArrayVar(&f.directives, "directive", nil, "a line '#STOKER …' instead of a script; may be repeated")
		case 'u':
			fs.IntVar(&f.uid, "uid", -1, "the job's user, who must be one that may read its data, and to whom the claim will belong (default as Slurm says)")
		case 'f':
			fs.StringVar(&f.file, "file", "", "file to write to")
		case 't':
			fs.DurationVar(&f.ttl, "ttl", defaultTTL, "how long the claim lives if it is neither repeated nor released")
		case 'p':
			fs.DurationVar(&f.patience, "patience", time.Minute, "with a controller that is away, if onmiss=start (default STOKER_SLURM_PATIENCE, else 1m)")
		case 'r':
			fs.StringVar(&f.root, "mount-root", "", "folder of the jobs' folders on every node (default STOKER_SLURM_MOUNT_ROOT, else "+defaultRoot+")")
		}
	}
	return cmd
}

// node takes the job from the environment of Prolog and Epilog.
func (f *flags) node(getenv func(string) string) {
	f.id = getenv("SLURM_JOB_ID")
	f.uid, f.gid = number(getenv("SLURM_JOB_UID")), number(getenv("SLURM_JOB_GID"))
}

func number(s string) int {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return -1
	}
	return int(n)
}

// hooks checks the flags.
func (f *flags) hooks(cmd *cobra.Command, env Env, usage func(*cobra.Command, string, ...any) error) (*hooks, error) {
	h := &hooks{Env: env, uid: f.uid, ttl: f.ttl, patience: f.patience, polls: polling, startOf: estimatedStart, userOf: userOf}
	h.script = f.script
	if v := env.Getenv("STOKER_SLURM_PATIENCE"); v != "" && !cmd.Flags().Changed("patience") {
		d, err := time.ParseDuration(v)
		if err != nil {
			return nil, usage(cmd, "STOKER_SLURM_PATIENCE=%s: want a time such as 90s", shown(v))
		}
		h.patience = d
	}
	h.root = cmp.Or(f.root, env.Getenv("STOKER_SLURM_MOUNT_ROOT"), defaultRoot)
	name := cmd.Name()
	if f.id != "" || name != "check" && name != "show" && name != "reconcile" {
		id, err := strconv.ParseUint(f.id, 10, 32)
		if err != nil || id == 0 {
			return nil, usage(cmd, "job %q: want the number of a job", shown(f.id))
		}
		h.id = id
	}
	switch {
	case f.ttl < minTTL || f.ttl > maxTTL:
		return nil, usage(cmd, "--ttl %v: want %v to %v", f.ttl, minTTL, maxTTL)
	case h.patience < 0:
		return nil, usage(cmd, "--patience %v: want 0 or more", h.patience)
	case name == "check" && (f.script == "") == (len(f.directives) == 0):
		return nil, usage(cmd, "want --script or --directive")
	case cmd.Flags().Lookup("script") != nil && name != "check" && f.script == "":
		return nil, usage(cmd, "--script is needed")
	case name == "paths" && f.file == "":
		return nil, usage(cmd, "--file is needed")
	}
	if name == "check" {
		return h, nil // no job yet
	}
	var err error
	if h.cluster = f.cluster; h.cluster == "" {
		h.cluster, err = clusterName(env.Getenv)
	}
	if err == nil && !clusterOf(h.cluster) {
		err = stoker.Errorf(stoker.KindInvalid, "cluster name", shown(h.cluster), "want 1 to 40 letters, digits and . _ -")
	}
	if err != nil {
		return nil, err
	}
	return h, nil
}

// clusterOf reports whether a name can stand in a job's id.
func clusterOf(name string) bool {
	for _, r := range name {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-') {
			return false
		}
	}
	return name != "" && len(name) <= 40
}
