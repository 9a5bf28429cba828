package slurm

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"stoker.dev/internal/api"
)

// span is one phase of a job.
type span struct {
	name     string
	from, to time.Time
}

// track is what happened to one job, as polls saw it.
type track struct {
	id, dataset string
	phases      []span
	window      int64 // bytes fetched of its dataset while it had its nodes
	atStart     int64
	started     bool
}

// see notes the phase that a job is in now.
func (k *track) see(phase string, now time.Time, fetched int64) {
	if n := len(k.phases); n == 0 || k.phases[n-1].name != phase {
		k.phases = append(k.phases, span{phase, now, now})
	}
	k.phases[len(k.phases)-1].to = now
	if phase != "running" && phase != "done" {
		return
	}
	if !k.started {
		k.started, k.atStart = true, fetched
	}
	k.window = fetched - k.atStart
}

// Two jobs on one dataset and one on another, behind a job that has the nodes:
// what they wait for, when their data comes, and how many bytes are fetched while
// they have their nodes, which is none. With STOKER_DEMO it shows all of it, and
// draws it into that file: make demo-slurm.
func timeline(t *testing.T, r *rig) {
	picture := os.Getenv("STOKER_DEMO")
	say := func(format string, args ...any) {
		if picture != "" {
			fmt.Printf(format+"\n", args...)
		}
	}
	size := map[string]int64{"imagenet": r.dataset("imagenet", 160), "labels": r.dataset("labels", 40)}
	r.proxy.Reset()
	gate := r.at("out", "nodes-free")
	busy := r.submit("while ! [ -e "+gate+" ]; do sleep 0.1; done", "-N2", "--exclusive")
	r.inState(busy, "RUNNING")
	reached, release := r.proxy.Hold(size["imagenet"] / 2) // so that the pictures show it half loaded
	defer release()
	var tracks []*track
	for _, dataset := range []string{"imagenet", "imagenet", "labels"} {
		id := r.submit("#STOKER dataset="+dataset+" onmiss=wait\nfor n in 1 2 3; do cat $(find $STOKER_MOUNT -type f) | wc -c; sleep 0.5; done", "--job-name="+dataset)
		tracks = append(tracks, &track{id: id, dataset: dataset})
		say("$ sbatch %s.sh        # with the line '#STOKER dataset=%s onmiss=wait'\nSubmitted batch job %s", dataset, dataset, id)
	}
	begin, shown := time.Now(), 0
	r.eventually("all jobs are done", func() bool {
		now, done := time.Now(), 0
		ready := 0
		for _, k := range tracks {
			phase := r.phase(k)
			k.see(phase, now, r.fetched(k.dataset))
			switch phase {
			case "done":
				done++
			case "ready":
				ready++
			}
		}
		select {
		case <-reached:
			if shown == 0 {
				shown = 1
				r.show(say, tracks)
				release()
			}
		default:
		}
		if ready == len(tracks) && shown == 1 {
			shown = 2
			r.show(say, tracks)
			must(t, os.WriteFile(gate, nil, 0o644))
		}
		return done == len(tracks)
	})
	for _, k := range tracks {
		want := strings.Repeat(fmt.Sprintln(size[k.dataset]), 3)
		if out := r.output(k.id); out != want || k.window != 0 {
			t.Errorf("job %s read %q, want %q; %d bytes were fetched while it had its nodes", k.id, out, want, k.window)
		}
		say("job %s, %-8s: %d bytes fetched while it had its nodes", k.id, k.dataset, k.window)
		r.released(k.id)
	}
	if got, want := r.proxy.Bytes(), size["imagenet"]+size["labels"]; got != want {
		t.Errorf("%d bytes were fetched for %d", got, want)
	}
	svg := draw(tracks, begin, r.proxy.Bytes())
	if picture != "" {
		must(t, os.WriteFile(picture, []byte(svg), 0o644))
		say("the timeline is in %s", picture)
	} else if n := strings.Count(svg, "<rect"); n < 9 || !strings.Contains(svg, ">running<") {
		t.Errorf("the picture has %d bars", n)
	}
}

// phase is what a job does now.
func (r *rig) phase(k *track) string {
	switch st := r.state(k.id); st {
	case "RUNNING", "COMPLETING", "CONFIGURING":
		return "running"
	case "COMPLETED":
		return "done"
	}
	switch r.claim(k.id).State {
	case api.JobReady:
		return "ready"
	case api.JobWarming:
		return "warming"
	}
	return "queued"
}

// fetched counts the bytes of a dataset that came from the store.
func (r *rig) fetched(dataset string) (sum int64) {
	for key, n := range r.proxy.BytesByKey() {
		if strings.HasPrefix(key, "/data/"+dataset+"/") {
			sum += n
		}
	}
	return sum
}

// show prints what a user would look at.
func (r *rig) show(say func(string, ...any), tracks []*track) {
	say("\n$ squeue\n%s\n$ scontrol show bbstat", strings.TrimRight(r.slurm("squeue", "-o", "%.6i %.10j %.8u %.2t %.10M %.6D %R").out, "\n"))
	say("%s\n$ scontrol show bbstat %s\n%s", strings.TrimSpace(r.as("scontrol", "show", "bbstat").out), tracks[0].id, strings.TrimSpace(r.as("scontrol", "show", "bbstat", tracks[0].id).out))
	say("\n$ stoker status\n%s", r.must("status"))
}

// draw makes an SVG of the phases.
func draw(tracks []*track, begin time.Time, fetched int64) string {
	const left, width, row = 150.0, 760.0, 44
	end := begin
	for _, k := range tracks {
		for _, p := range k.phases {
			if p.name != "done" && p.to.After(end) {
				end = p.to
			}
		}
	}
	x := func(at time.Time) float64 {
		return left + width*at.Sub(begin).Seconds()/max(0.001, end.Sub(begin).Seconds())
	}
	colors := map[string]string{"queued": "#c9ced6", "warming": "#f2a33c", "ready": "#8cc084", "running": "#3b7dd8"}
	var b strings.Builder
	height := 70 + row*len(tracks)
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="940" height="%d" font-family="sans-serif" font-size="13">`+"\n", height)
	fmt.Fprintf(&b, `<rect width="940" height="%d" fill="#ffffff"/>`+"\n", height)
	at := 20.0
	for _, name := range []string{"queued", "warming", "ready", "running"} {
		fmt.Fprintf(&b, `<rect x="%.0f" y="10" width="14" height="14" fill="%s"/><text x="%.0f" y="22">%s</text>`+"\n", at, colors[name], at+20, name)
		at += 100
	}
	fmt.Fprintf(&b, `<text x="%.0f" y="22">%s fetched in all</text>`+"\n", at, api.HumanBytes(fetched))
	for i, k := range tracks {
		y := 40 + row*i
		fmt.Fprintf(&b, `<text x="20" y="%d">%s, job %s</text>`+"\n", y+18, k.dataset, k.id)
		for j, p := range k.phases {
			if p.name == "done" {
				continue
			}
			to := p.to
			if j+1 < len(k.phases) {
				to = k.phases[j+1].from
			}
			fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="26" fill="%s"><title>%s %.1f s</title></rect>`+"\n", x(p.from), y, max(1, x(to)-x(p.from)), colors[p.name], p.name, to.Sub(p.from).Seconds())
			if p.name == "running" {
				fmt.Fprintf(&b, `<text x="%.1f" y="%d" fill="#ffffff">%d bytes fetched</text>`+"\n", x(p.from)+6, y+18, k.window)
			}
		}
	}
	fmt.Fprintf(&b, `<text x="%.0f" y="%d">0 s</text><text x="%.0f" y="%d" text-anchor="end">%.1f s</text>`+"\n</svg>\n", left, height-12, left+width, height-12, end.Sub(begin).Seconds())
	return b.String()
}
