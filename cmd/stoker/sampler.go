package main

import (
	"errors"

	"github.com/spf13/cobra"

	"stoker.dev"
	"stoker.dev/planner/order"
)

// samplerHelp explains --sampler.
const samplerHelp = `
--sampler says in which order the job reads: pytorch:seed=S,world=W[,drop_last] is
that of DistributedSampler(dataset, num_replicas=W, seed=S, drop_last=…), whose
epochs and ranks are found by what is read. What a rank reads next comes in ahead
of it while data is not on its node. The samples are the files in the order of
torchvision's ImageFolder: folder by folder, sorted by name. Take those that the
job's list has, as with --path train --include '*.jpg': with others than these the
order is not found, and the job reads as without, as it does if there are fewer than
512 files.`

func samplerFlag(cmd *cobra.Command, spec *string) {
	cmd.Flags().StringVar(spec, "sampler", "", "order in which the job reads, such as pytorch:seed=0,world=8 (default not known)")
}

// checkSampler reads --sampler, and writes it as all do.
func checkSampler(cmd *cobra.Command, spec *string) error {
	if !cmd.Flags().Changed("sampler") {
		return nil
	}
	s, err := order.Parse(*spec)
	if e := (*stoker.Error)(nil); errors.As(err, &e) {
		return usagef(cmd, "--sampler %s: %v", e.Key, e.Err)
	}
	*spec = s.String()
	return nil
}
