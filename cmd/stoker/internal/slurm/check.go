package slurm

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// answerIn is how long a submission waits for the controller: slurmctld does
// nothing else meanwhile. What it does not answer in time, setup finds out.
const answerIn = 300 * time.Millisecond

// check is asked when a job is submitted.
func (h *hooks) check(ctx context.Context, lines []string) error {
	var w *want
	var err error
	if h.script != "" {
		w, err = readScript(h.script)
	} else {
		w, err = parse(lines)
	}
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, answerIn)
		defer cancel()
		err = h.known(ctx, w)
		if away(err) || ctx.Err() != nil {
			return h.verdict(nil, "not checked further: the controller does not answer")
		}
	}
	return h.verdict(err, "")
}

// known checks that the datasets are there and can ever fit. An error that
// passes says nothing of the job.
func (h *hooks) known(ctx context.Context, w *want) error {
	c, err := h.Controller()
	if err != nil {
		return err
	}
	type answer struct {
		capacity int64
		err      error
	}
	room := make(chan answer, 1) // the one answer
	go func() {
		workers, err := c.Workers(ctx)
		var sum int64
		for _, k := range workers {
			sum += k.CapacityBytes
		}
		room <- answer{sum, err}
	}()
	var sum int64
	reader := h.owner()
	for _, ref := range w.datasets {
		name := ref.Name
		if ref.Generation != 0 {
			name += "@" + strconv.Itoa(ref.Generation)
		}
		bytes, err := size(ctx, c, name, reader, ref.Selection)
		if stoker.KindOf(err) == stoker.KindNotExist && err != nil {
			return stoker.Errorf(stoker.KindNotExist, "dataset", name, "is not known: 'stoker dataset ls' lists what is, 'stoker dataset add %s URI' adds it", ref.Name)
		} else if err != nil {
			return err
		}
		sum += bytes * int64(max(1, w.replicas))
	}
	has := <-room
	switch {
	case has.err != nil:
		return has.err
	case has.capacity > 0 && sum > has.capacity && (w.onMiss != "start" || w.deadline == nil):
		return stoker.Errorf(stoker.KindNoSpace, "job", "", "its data needs %s, all workers together hold %s: with onmiss=start and a deadline it starts with what fits",
			api.HumanBytes(sum), api.HumanBytes(has.capacity))
	}
	return nil
}

// size is how much of a dataset a job wants, if its user may read it.
func size(ctx context.Context, c *api.Controller, name, reader string, some *api.Selection) (int64, error) {
	if some == nil {
		d, err := c.DatasetFor(ctx, name, reader)
		if err != nil {
			return 0, err
		}
		return d.Bytes, nil
	}
	d, err := c.SelectedFor(ctx, name, reader, *some)
	switch {
	case err != nil:
		return 0, err
	case d.Selected == nil: // an older controller: setup is told
		return 0, nil
	case d.Selected.Objects == 0:
		return 0, stoker.Errorf(stoker.KindInvalid, "dataset", name, "%s: none of its %d objects is meant: paths and patterns are compared with those below the mount, such as path=train or include=*.jpg",
			strings.TrimSpace(selected(some)), d.Objects)
	}
	return d.Selected.Bytes, nil
}

// show prints how far a job's data is, or that of all jobs of the cluster.
func (h *hooks) show(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, setupIn)
	defer cancel()
	c, err := h.Controller()
	if err != nil {
		return h.verdict(err, "")
	}
	if h.id != 0 {
		st, err := c.Job(ctx, h.name())
		if err == nil {
			err = progress(h.Out(), st)
		}
		return h.verdict(err, "")
	}
	jobs, err := c.Jobs(ctx)
	if err != nil {
		return h.verdict(err, "")
	}
	for _, j := range jobs {
		if id, ok := strings.CutPrefix(j.Job, prefix(h.cluster)); ok && living(j.State) {
			fmt.Fprintf(h.Out(), "%s %s: %s, %s of %s\n", id, strings.Join(j.Datasets, " "), j.State, api.HumanBytes(j.ResidentBytes), api.HumanBytes(j.Bytes))
		}
	}
	return h.verdict(nil, "")
}

func living(state string) bool {
	return state != api.JobReleased && state != api.JobGrace && state != api.JobFailed
}

// progress prints a job for scontrol.
func progress(out io.Writer, st *api.JobStatus) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s, %s of %s (%s)", st.Job, st.State, api.HumanBytes(st.ResidentBytes), api.HumanBytes(st.Bytes), share(st))
	if !api.Settled(st.State) {
		fmt.Fprintf(&b, ", %s/s", api.HumanBytes(int64(st.BytesPerSec)))
		if st.ETASeconds >= 0 {
			fmt.Fprintf(&b, ", ready in %v", (time.Duration(st.ETASeconds) * time.Second).Round(time.Second))
		}
		if !st.WaitingSince.IsZero() {
			fmt.Fprintf(&b, ", the store has not answered since %s", st.WaitingSince.UTC().Format(time.RFC3339))
		}
	}
	b.WriteByte('\n')
	for _, d := range st.Datasets {
		fmt.Fprintf(&b, "  %s@%d%s: %s of %s\n", d.Name, d.Generation, selected(d.Selection), api.HumanBytes(d.ResidentBytes), api.HumanBytes(d.Bytes))
	}
	if st.Error != nil {
		fmt.Fprintf(&b, "  %s\n", named(st.Error.Err("job", st.Job), st))
	}
	_, err := io.WriteString(out, b.String())
	return err
}
