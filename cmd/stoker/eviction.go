package main

import (
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"stoker.dev/internal/api"
)

// evictionFlags say what becomes of a dataset's data while nobody holds it.
type evictionFlags struct{ evict, ttl string }

var evictModes = []string{"auto", "keep", "lfu"}

func (f *evictionFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.evict, "evict", "auto", "what reads of it may drive out while nobody holds it: `MODE` auto, keep or lfu")
	cmd.Flags().StringVar(&f.ttl, "ttl", "default", "how long its data stays on a worker when nobody holds or reads it: a `TIME` from 1s on such as 72h, never, or default: as the workers' --evict-idle says")
}

// parse reads both flags.
func (f *evictionFlags) parse(cmd *cobra.Command) (api.Eviction, error) {
	if !slices.Contains(evictModes, f.evict) {
		return api.Eviction{}, usagef(cmd, "--evict %q: want auto, keep or lfu", f.evict)
	}
	e := api.Eviction{Evict: f.evict}
	switch f.ttl {
	case "default", "0":
	case "never":
		e.TTLSeconds = -1
	default:
		d, err := time.ParseDuration(f.ttl)
		if err != nil || d < time.Second {
			return api.Eviction{}, usagef(cmd, "--ttl %q: want a time from 1s on, such as 72h, or never, or default", f.ttl)
		}
		e.TTLSeconds = d.Seconds()
	}
	return e, nil
}

func (a *app) datasetSetCommand() *cobra.Command {
	var rule evictionFlags
	var replicas int
	var readers string
	cmd := &cobra.Command{
		Use: "set NAME", Short: "change how a dataset's data is kept, and who may read it", Args: oneArg("a dataset's name"),
		Long: `Changes how many workers have the dataset's data, what becomes of it while no job,
pin or load holds it, and who may read it. It is for all its generations; what is
not given stays as it is.

--replicas 2 has two workers hold each shard: for claims and preloads that do not
say how many themselves, and for what is on the workers now. Copies that are
missing are made among the workers, without asking the store and at their
--copy-rate, also after a worker was lost and its return window is over; for
data that nobody holds only where there is room without evicting anything. A
lower number drops the copies beyond it, but never below what those want who
hold the data, nor what a mounted view shows.

--evict keep: what is there stays until its space is needed for held data; what
does not fit beside it is read through. That is best for training, which reads
every sample once in an epoch. --evict lfu: a shard that is read more often takes
the place of one that is read less often (W-TinyLFU); best where some are far
more popular. --evict auto, the default, is keep until the reads show that some
are.

--ttl 72h frees the data on a worker where nobody has held or read it for 72
hours, and no job has let go of it within its grace; never keeps it until its
space is needed, whatever the worker's --evict-idle says, and default goes by
that. The workers hear of it at once, those that are away when they are back.

` + readersHelp + `
--readers +bob,-alice changes the list. Only an admin may begin to keep a dataset to
readers, for that closes its data to all others; then its owner changes who they are.
Jobs and views that have begun go on.`,
		Example: `  stoker dataset set imagenet --replicas 2
  stoker dataset set imagenet --evict keep
  stoker dataset set scratch --ttl 24h
  stoker dataset set patients --readers alice,@radiology
  stoker dataset set patients --readers +bob
  stoker dataset set scratch --ttl default --evict auto`,
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := rule.parse(cmd)
			if err != nil {
				return err
			}
			var req api.EvictionRequest
			if cmd.Flags().Changed("evict") {
				req.Evict = &e.Evict
			}
			if cmd.Flags().Changed("ttl") {
				req.TTLSeconds = &e.TTLSeconds
			}
			more, others := cmd.Flags().Changed("replicas"), cmd.Flags().Changed("readers")
			var who api.ReadersRequest
			if others {
				if who, err = parseReaders(cmd, readers); err != nil {
					return err
				}
			}
			switch {
			case more && (replicas < 1 || replicas > maxReplicas):
				return usagef(cmd, "--replicas %d: want 1 to %d", replicas, maxReplicas)
			case !more && !others && req == (api.EvictionRequest{}):
				return usagef(cmd, "nothing to set: give --replicas, --readers, --evict or --ttl")
			}
			name, c, err := a.plainDataset(cmd, args[0])
			if err != nil {
				return err
			}
			var d *api.DatasetDetail
			if others {
				d, err = c.SetReaders(cmd.Context(), name, who)
			}
			if err == nil && req != (api.EvictionRequest{}) {
				d, err = c.SetEviction(cmd.Context(), name, req)
			}
			if err == nil && more {
				d, err = c.SetReplicas(cmd.Context(), name, api.ReplicasRequest{Replicas: replicas})
			}
			if err != nil {
				return err
			}
			return a.printDetail(d)
		},
	}
	rule.add(cmd)
	cmd.Flags().IntVar(&replicas, "replicas", 1, "workers that hold each shard, 1 to 16")
	cmd.Flags().StringVar(&readers, "readers", "", "who may read it besides its owner and admins: `USERS` and @groups with commas between, nobody, everybody, or changes such as +bob,-alice")
	return cmd
}

// copiesText says how many copies of a dataset there are to be, and what is wrong.
func copiesText(d *api.DatasetDetail) string {
	text := strconv.Itoa(max(1, d.Replicas))
	switch x := d.Copies; {
	case x == nil:
	case x.Running && x.Bytes > 0:
		text += ", " + api.HumanBytes(x.Bytes) + " are being copied"
	case x.Error != nil:
		text += ": " + x.Error.Message
	case x.ShortBytes > 0:
		text += ", no room for " + api.HumanBytes(x.ShortBytes)
	}
	return text
}

// evictionText is a rule for people.
func evictionText(e api.Eviction) string {
	text := e.Evict
	switch {
	case e.TTLSeconds > 0:
		text += ", after " + span(time.Duration(e.TTLSeconds*float64(time.Second))) + " without use"
	case e.TTLSeconds < 0:
		text += ", never for want of use"
	}
	return text
}
