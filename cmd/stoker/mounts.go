package main

import (
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// mountPoint makes the path of a folder absolute and frees its parents of
// symlinks; the folder itself must not be one.
func mountPoint(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", stoker.Errorf(stoker.KindInvalid, "mount", printable(dir), "%w", err)
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", stoker.Errorf(stoker.KindNotExist, "mount", printable(dir), "%w", err)
	}
	return filepath.Join(parent, filepath.Base(abs)), nil
}

// readAhead is the flag of what the kernel reads ahead; unset it is the worker's choice.
type readAhead struct{ bytes *int64 }

// Set implements pflag.Value.
func (r *readAhead) Set(s string) error {
	n, err := api.ParseBytes(s, api.MostKernelReadAhead)
	r.bytes = &n
	return ofFlag(err)
}

// String implements pflag.Value.
func (r *readAhead) String() string {
	if r.bytes == nil {
		return ""
	}
	return api.HumanBytes(*r.bytes)
}

// Type implements pflag.Value.
func (r *readAhead) Type() string { return "size" }

func readAheadFlag(cmd *cobra.Command, r *readAhead) {
	cmd.Flags().Var(r, "kernel-read-ahead", "what the kernel reads ahead in each file (default 4MiB, or 1MiB of a kernel view of what is here)")
}

func (a *app) mountCommand() *cobra.Command {
	req := api.MountRequest{}
	var ahead readAhead
	var sampler string
	var sel api.Selection
	var uid, gid int
	var umask string
	cmd := &cobra.Command{
		Use:   "mount DATASET[@GEN] DIR",
		Short: "mount a dataset on this node, read-only",
		Long: `Mounts the dataset as an ordinary read-only folder. DIR must be an empty folder of
yours. What is not resident is brought in as it is read. The mount stays until
'stoker umount DIR'; while it stands, the data is not evicted.

A kernel view is read by the kernel alone where the data is on this node's disks,
and stands whatever happens to the worker; O_DIRECT is refused in it. A tree view
is served by the worker. auto is a kernel view if all of the data is here and the
kernel and the worker's rights allow it, else a tree view. It stays what it is.

The kernel reads some MiB ahead in each file, and around each page of a mapped one. A
program that maps files and reads them at random should say so (MADV_RANDOM); for
one that does not, --kernel-read-ahead 0 keeps the kernel from reading 4 MiB around
each page.
` + samplerHelp + `
All of the dataset is mounted: --path, --include and --exclude say which files the
order is of.`,
		Example: `  mkdir ~/imagenet && stoker mount imagenet ~/imagenet
  stoker mount imagenet ~/imagenet --sampler pytorch:seed=0,world=8 --path train
  stoker umount ~/imagenet`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usagef(cmd, "a dataset and a folder are needed")
			}
			if args[1] == "" {
				return usagef(cmd, "the folder's name is empty")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := datasetArg(args[0])
			if err != nil {
				return err
			}
			req.Dataset, req.Generation = ref.Name, ref.Generation
			if req.Dir, err = mountPoint(args[1]); err != nil {
				return err
			}
			if !slices.Contains(viewKinds(), req.View) {
				return usagef(cmd, "--view %q: want %s", req.View, viewWords)
			}
			if err := ids(cmd, &req, uid, gid, umask); err != nil {
				return err
			}
			some, err := selected(cmd, &sel)
			if err != nil {
				return err
			}
			if err := checkSampler(cmd, &sampler); err != nil {
				return err
			}
			if some != nil && sampler == "" {
				return usagef(cmd, "--path, --include and --exclude go with --sampler: all of a dataset is mounted")
			}
			req.ReadAs(sampler, some)
			req.KernelReadAheadBytes = ahead.bytes
			n, err := a.node()
			if err != nil {
				return err
			}
			m, err := n.Mount(cmd.Context(), req)
			if err != nil {
				return err
			}
			a.noteAge(m.Dataset, m.Generation, m.ListedAt)
			return a.print(m, func(w io.Writer) {
				row(w, "mounted", m.Dir)
				row(w, "view", strings.TrimSuffix(m.View+": "+m.Why, ": ")) // a worker of an earlier release does not say why
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.View, "view", "auto", viewWords)
	f.IntVar(&uid, "uid", 0, "owner of the files (default yours; only root may choose)")
	f.IntVar(&gid, "gid", 0, "group of the files (default the owner's)")
	f.StringVar(&umask, "umask", "0022", "permissions taken away, octal (0077 if not everybody may read the dataset)")
	readAheadFlag(cmd, &ahead)
	samplerFlag(cmd, &sampler)
	selectionFlags(cmd, &sel)
	return cmd
}

// viewKinds are the values of --view.
func viewKinds() []string { return []string{"auto", "tree", "kernel"} }

const viewWords = "auto, tree (served by the worker) or kernel (read by the kernel alone)"

// ids puts the owner's flags into the request, where they were given.
func ids(cmd *cobra.Command, req *api.MountRequest, uid, gid int, umask string) error {
	for name, v := range map[string]int{"uid": uid, "gid": gid} {
		if v < 0 || v > 1<<32-2 {
			return usagef(cmd, "--%s %d is out of range", name, v)
		}
	}
	if cmd.Flags().Changed("uid") {
		u := uint32(uid)
		req.UID = &u
	}
	if cmd.Flags().Changed("gid") {
		g := uint32(gid)
		req.GID = &g
	}
	if cmd.Flags().Changed("umask") {
		m, err := strconv.ParseUint(umask, 8, 32)
		if err != nil || m > 0o777 {
			return usagef(cmd, "--umask %q: want an octal number up to 0777", umask)
		}
		v := uint32(m)
		req.Umask = &v
	}
	return nil
}

func (a *app) umountCommand() *cobra.Command {
	return &cobra.Command{
		Use: "umount DIR", Short: "unmount a dataset", Args: oneArg("a folder"),
		Long: `Unmounts what 'stoker mount' mounted. While a process uses it, that is refused
(exit code 11).`,
		Example: `  stoker umount ~/imagenet`,
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := mountPoint(args[0])
			if err != nil {
				return err
			}
			n, err := a.node()
			if err != nil {
				return err
			}
			return n.Unmount(cmd.Context(), dir, false)
		},
	}
}
