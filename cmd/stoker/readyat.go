package main

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"stoker.dev/internal/api"
)

// readyAt is how much of the data a command waits for.
type readyAt struct {
	text    string
	percent float64   // 0: all of it
	auto    bool      // until the load stays ahead of a job that reads at rate
	rate    bandwidth // bytes in a second
}

func (r *readyAt) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&r.text, "ready-at", "", "begin with a part of the data: 1 to 99 percent, or auto (default all of it)")
	cmd.Flags().Var(&r.rate, "read-rate", "with --ready-at auto: how fast the command reads, on all its nodes together, such as 500MB/s")
}

// check reads the flags.
func (r *readyAt) check(cmd *cobra.Command, verify string) error {
	var err error
	r.auto = r.text == "auto"
	switch r.percent, err = strconv.ParseFloat(strings.TrimSuffix(r.text, "%"), 64); {
	case r.text == "":
		r.percent = 0
	case r.auto && r.rate == 0:
		return usagef(cmd, "--ready-at auto needs --read-rate")
	case !r.auto && (err != nil || !(r.percent >= 1 && r.percent <= 99)):
		return usagef(cmd, "--ready-at %q: want 1 to 99, or auto", r.text)
	case verify != "":
		return usagef(cmd, "--ready-at and --verify do not go together")
	}
	if !r.auto && cmd.Flags().Changed("read-rate") {
		return usagef(cmd, "--read-rate goes with --ready-at auto")
	}
	return nil
}

// enough reports whether the command may begin while the rest is loaded. A load at
// rate L stays ahead of who reads D bytes once at rate R, if D(1 - L/R) of them are
// there when he begins: what he has read after t seconds, Rt, is then never more
// than what is there, for all t up to D/R.
func (r *readyAt) enough(st *api.JobStatus) bool {
	if st.State != api.JobWarming || r.text == "" {
		return false
	}
	have, all := float64(st.ResidentBytes), float64(st.Bytes)
	if r.auto {
		return st.BytesPerSec > 0 && have >= all*(1-st.BytesPerSec/float64(r.rate))
	}
	return 100*have >= r.percent*all
}
