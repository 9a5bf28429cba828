package main

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"stoker.dev"
	"stoker.dev/cmd/stoker/internal/live"
	"stoker.dev/internal/api"
)

func (a *app) datasetCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "dataset", Short: "register and show datasets",
		Long: `A dataset is a named prefix of a store or a folder, or several of them joined,
listed and frozen into generations: a job reads one generation, whatever happens
in the store.`,
		Example: `  stoker dataset add imagenet s3://datasets/imagenet
  stoker dataset ls
  stoker dataset show imagenet`}
	group(cmd)
	cmd.AddCommand(a.datasetAddCommand(), a.datasetLsCommand(), a.datasetShowCommand(), a.datasetSyncCommand(), a.datasetSetCommand(), a.datasetRmCommand())
	return cmd
}

func (a *app) datasetAddCommand() *cobra.Command {
	var at locationFlags
	var maxAge time.Duration
	var every string
	var replicas int
	var rule evictionFlags
	var readers string
	cmd := &cobra.Command{
		Use:   "add NAME URI|FOLDER=URI...",
		Short: "list a prefix of a store, freeze it as generation 1 and give it a name",
		Long: `Lists everything below the URI and freezes the listing: that is generation 1 of
the dataset. A URI is s3://bucket/prefix, or file:///folder for a folder that the
daemons may read (their --allow-file) and that is mounted at the same path on
every controller and worker. Without --endpoint the daemons' AWS environment says
where the store is; credentials are always the daemons' own, by name with
--profile.

With --every the dataset is listed again on schedule: what has changed by then is
its new generation, for jobs that are submitted from then on.

--replicas says how many workers hold each shard, --evict and --ttl what becomes
of its data on the workers while nobody holds it; 'stoker dataset set --help'
explains them, and --readers, which says who may read it: for admins.

Several URIs are joined, each under a folder of its own. --endpoint, --region,
--profile, --path-style and --anonymous are then for all stores, or for one of
them as --profile FOLDER=NAME, --endpoint FOLDER=URL, --region FOLDER=REGION,
--path-style=FOLDER, --anonymous=FOLDER; its own wins.`,
		Example: `  stoker dataset add imagenet s3://datasets/imagenet
  stoker dataset add logs s3://logs/clean --every 1h --ttl 72h
  stoker dataset add patients s3://clinic/scans --readers alice,@radiology
  stoker dataset add speech audio=s3://speech/wav text=s3://speech/transcripts
  stoker dataset add local s3://bucket --endpoint http://127.0.0.1:9000 --path-style
  stoker dataset add mix images=s3://images labels=file:///nfs/labels old=s3://old \
      --profile images=team-a --anonymous=old`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usagef(cmd, "a name and a URI are needed")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if maxAge < 0 {
				return usagef(cmd, "--max-age %s: want a time such as 24h, or 0 for never", maxAge)
			}
			if replicas < 1 || replicas > maxReplicas {
				return usagef(cmd, "--replicas %d: want 1 to %d", replicas, maxReplicas)
			}
			req := api.AddDatasetRequest{Name: args[0], MaxAgeSeconds: maxAge.Seconds()}
			if replicas > 1 { // a controller of an earlier release knows none
				req.Replicas = replicas
			}
			often, err := parseEvery(cmd, every)
			if err != nil {
				return err
			}
			req.SyncEverySeconds = often.Seconds()
			if req.Eviction, err = rule.parse(cmd); err != nil {
				return err
			}
			if req.IsDefault() { // a controller of an earlier release knows no rules
				req.Eviction = api.Eviction{}
			}
			who, err := parseReaders(cmd, readers)
			if err != nil {
				return err
			}
			if len(who.Add)+len(who.Remove) > 0 {
				return usagef(cmd, "--readers %q: a new dataset has no readers to change: give all, such as alice,@vision", readers)
			}
			req.Readers = who.Readers
			if !isName(req.Name) {
				return stoker.Errorf(stoker.KindInvalid, "dataset add", printable(req.Name), "is no dataset name: %s", aName)
			}
			for _, s := range args[1:] {
				root, err := parseRoot(s)
				if err != nil {
					return err
				}
				req.Roots = append(req.Roots, root)
			}
			if err := at.apply("dataset add", req.Roots); err != nil {
				return err
			}
			c, err := a.controller()
			if err != nil {
				return err
			}
			d, err := a.addDataset(cmd.Context(), c, req)
			if err != nil {
				return err
			}
			if n := len(d.Unmountable); n > 0 {
				a.console.Note("%d keys cannot be files and are left out: 'stoker dataset show %s' lists them", n, d.Name)
			}
			return a.printDetail(d)
		},
	}
	f := cmd.Flags()
	f.DurationVar(&maxAge, "max-age", 0, "list again before use when the listing is older, such as 24h (default never)")
	f.StringVar(&every, "every", "", "list it again on schedule, each `TIME` from 1m to 366 days, such as 10m or 24h (default never)")
	f.IntVar(&replicas, "replicas", 1, "workers that hold each shard, 1 to 16")
	f.StringVar(&readers, "readers", everybody, "who may read it besides its owner and admins: `USERS` and @groups with commas between, nobody, or everybody")
	rule.add(cmd)
	at.add(cmd)
	return cmd
}

// addDataset lists and registers a dataset, over restarts of the controller.
func (a *app) addDataset(ctx context.Context, c *api.Controller, req api.AddDatasetRequest) (*api.DatasetDetail, error) {
	if _, err := c.Version(ctx); err != nil {
		return nil, err // not there at all
	}
	req.Nonce = stoker.NewToken()
	p := newListing(a.console)
	defer p.Done()
	away := false
	d, err := again(ctx, a.console, func() (*api.DatasetDetail, error) {
		d, err := c.AddDataset(ctx, req, p.Event)
		away = api.Lost(err)
		return d, err
	})
	if away && ctx.Err() != nil {
		a.console.Note("dataset %s: no controller heard that it is not wanted any more: see 'stoker dataset ls', and 'stoker dataset rm %s'", req.Name, req.Name)
	}
	return d, err
}

// syncDataset lists a dataset again, over restarts of the controller.
func (a *app) syncDataset(ctx context.Context, c *api.Controller, name string) (*api.DatasetDetail, error) {
	if _, err := c.Version(ctx); err != nil {
		return nil, err
	}
	p := newListing(a.console)
	defer p.Done()
	var req api.SyncRequest
	return again(ctx, a.console, func() (*api.DatasetDetail, error) {
		return c.SyncDataset(ctx, name, req, func(e api.Event) {
			if e.Following != nil && e.Following.Run != req.Run {
				req.Following = *e.Following
			}
			p.Event(e)
		})
	})
}

func (a *app) datasetShowCommand() *cobra.Command {
	var changes string
	cmd := &cobra.Command{
		Use: "show NAME[@GEN]", Short: "show one dataset: what it is, where it is, who holds it", Args: oneArg("a dataset's name"),
		Long: `Shows a generation of a dataset, the current one unless @GEN says another: its
size, how much is on the workers, who holds it, and which keys of the store
cannot be files. What was preloaded by its URI alone is shown by that. With
--changes, what is different from the generation before, or from FROM, instead:
counts, bytes, and the first paths.`,
		Example: `  stoker dataset show imagenet
  stoker dataset show imagenet@1 -o json | jq .unmountable
  stoker dataset show imagenet --changes
  stoker dataset show imagenet --changes=1..3 -o json | jq .paths`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := datasetArg(args[0])
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("changes") {
				return a.showChanges(cmd, ref, changes)
			}
			c, err := a.controller()
			if err != nil {
				return err
			}
			d, err := c.Dataset(cmd.Context(), refName(ref))
			if err != nil {
				return err
			}
			return a.printDetail(d)
		},
	}
	cmd.Flags().StringVar(&changes, "changes", "", "compare with the generation before, or with =`FROM`, or two of them: =FROM..TO")
	cmd.Flags().Lookup("changes").NoOptDefVal = previous
	return cmd
}

// oneArg wants exactly one argument, and one that is not empty.
func oneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 || args[0] == "" {
			return usagef(cmd, "%s is needed, and nothing else", what)
		}
		return nil
	}
}

// noteAge says which generation is taken, and how old its listing is.
func (a *app) noteAge(name string, generation int, listed time.Time) {
	if generation > 0 && !listed.IsZero() {
		a.console.Line("dataset %s, listed %s ago", refName(api.DatasetRef{Name: name, Generation: generation}), span(time.Since(listed)))
	}
}

func (a *app) verifyCommand() *cobra.Command {
	var deep bool
	var sel api.Selection
	cmd := &cobra.Command{
		Use:   "verify DATASET[@GEN]",
		Short: "compare what the workers truly have on disk with the manifest",
		Long: `Asks every worker which files it has, how long they are and which checksums are
recorded, and counts that against the manifest. With --deep every byte is read
from every worker's disk and compared with the checksum of its block. Exit code 4
if something is missing, 6 if a worker had wrong bytes, whose files are named; they
are out of use since, and 'stoker preload' brings them in again. A kernel view that
is mounted there reads them until it is mounted again; it is named, too.

A URI that was preloaded without a name may be given instead; so it may to evict
and 'dataset show'.` + selectionWords,
		Example: `  stoker verify imagenet
  stoker verify imagenet --path train --exclude '*.tmp'
  stoker verify imagenet --deep -o json | jq '.failed, .wrong'`,
		Args: oneArg("a dataset's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := datasetArg(args[0])
			if err != nil {
				return err
			}
			c, err := a.controller()
			if err != nil {
				return err
			}
			if _, err := selected(cmd, &sel); err != nil {
				return err
			}
			p := newProgress(a.console, "verifying", "")
			cert, err := c.Verify(cmd.Context(), refName(ref), deep, sel, p.Event)
			p.Done()
			if err != nil {
				return err
			}
			err = a.certified(cert, nil)
			for _, f := range cert.Wrong[:min(len(cert.Wrong), maxListed)] {
				a.console.Note("%s: wrong bytes on worker %s", f.Path, live.ShortID(f.Worker))
			}
			if n := len(cert.Wrong) - maxListed; n > 0 {
				a.console.Note("and %d more files with wrong bytes: -o json lists them all", n)
			}
			if len(cert.Wrong) > 0 {
				a.noteViews(cmd.Context(), c, refName(ref), cert)
			}
			if wrongBytes(cert) {
				err = stoker.Errorf(stoker.KindCorrupt, "dataset", refName(ref), "wrong bytes were found: run 'stoker preload %s --wait' to bring them in again", ref.Name)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&deep, "deep", false, "read every byte again")
	selectionFlags(cmd, &sel)
	return cmd
}

// wrongBytes reports whether a verify found any, on whichever worker.
func wrongBytes(cert *api.Certificate) bool {
	return len(cert.Wrong) > 0 || slices.ContainsFunc(cert.Failed, func(f api.Failure) bool { return f.Kind == stoker.KindCorrupt.String() })
}

// noteViews names the kernel views that show wrong bytes: the kernel reads the file
// that it has until the view ends, whatever is brought in again.
func (a *app) noteViews(ctx context.Context, c *api.Controller, name string, cert *api.Certificate) {
	d, err := c.Dataset(ctx, name)
	if err != nil {
		a.console.Note("which kernel views show them is not known: 'stoker dataset show %s' lists them: %v", name, err)
		return
	}
	for _, v := range d.Views {
		if v.View == "kernel" && slices.ContainsFunc(cert.Wrong, func(f api.WrongFile) bool { return f.Worker == v.Worker }) {
			a.console.Note("the kernel view at %s on %s shows them until it is unmounted: end what reads it, and mount it again", printable(v.Dir), printable(v.Node))
		}
	}
}

// certified prints a certificate and returns the error that it stands for.
func (a *app) certified(cert *api.Certificate, said error) error {
	if err := a.printCertificate(cert); err != nil {
		return err
	}
	a.listFailures(cert.Failed)
	return certificateError(cert, said)
}

func (a *app) evictCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "evict DATASET[@GEN]",
		Short: "free the space of a dataset on all workers",
		Long: `Frees what the workers have of a dataset. Data that a job, a pin or a mounted
view holds is refused (exit code 11) unless --force, which ends the leases;
a mounted view then reads from the store again. What was preloaded by its URI
alone belongs to nobody: an admin may evict it by that.`,
		Example: `  stoker evict imagenet
  stoker evict imagenet@1 --force`,
		Args: oneArg("a dataset's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := datasetArg(args[0])
			if err != nil {
				return err
			}
			c, err := a.controller()
			if err != nil {
				return err
			}
			rep, err := c.Evict(cmd.Context(), refName(ref), force)
			if err != nil {
				return err
			}
			return a.printFreed(rep)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "even if it is held")
	return cmd
}
