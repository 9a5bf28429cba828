package main

import (
	"fmt"
	"html"
	"io"
	"strings"
)

// chart is one picture of bars that can be compared.
type chart struct {
	title string
	unit  string // of the bars
	kind  kind
	goals map[string]float64 // what a bar is to reach, or not to exceed, by benchmark
}

type kind struct {
	short bool // shorter is better: goals are not to be exceeded
	ratio bool // 1 = the same
}

var (
	rates  = kind{ratio: true}
	costs  = kind{ratio: true, short: true}
	micros = kind{short: true}
	speeds = kind{}
)

var charts = []chart{
	{"Rate of the view ÷ rate of the local disk", "view/disk", rates, map[string]float64{
		"Views/kernel/large/hot": .90, "Views/kernel/small/hot": .90, "Views/kernel/tiny/hot": .90,
		"Views/kernel/large/dropped": .95, "Views/kernel/small/dropped": .85, "Views/kernel/tiny/dropped": .80,
		"Views/tree/small/hot": .85, "Views/tree/small/dropped": .65, "Views/tree/large/hot": .60,
	}},
	{"CPU of the view, worker included ÷ CPU of the local disk", "cpu-view/disk", costs, map[string]float64{
		"Views/kernel/large/hot": 1.15, "Views/kernel/small/hot": 1.15, "Views/kernel/tiny/hot": 1.15,
		"Views/kernel/large/dropped": 1.3, "Views/kernel/small/dropped": 1.3, "Views/kernel/tiny/dropped": 1.3,
		"Views/tree/small/hot": 1.25,
	}},
	{"Time of a read at random: view ÷ local disk", "p50-view/disk", costs, map[string]float64{
		"Random/kernel/4KiB/hot": 1.15, "Random/kernel/4KiB/dropped": 1.15, "Random/kernel/128KiB/hot": 1.15,
		"Random/kernel/128KiB/dropped": 1.15, "Random/kernel/mapped/hot": 1.15, "Random/kernel/mapped/dropped": 1.15,
	}},
	{"First walk over a million names: rate of the view ÷ rate of the local disk", "first-view/disk", rates, nil},
	{"Second walk over them", "second-view/disk", rates, map[string]float64{"Names/tree": .80}},
	{"CPU microseconds for each name of the first walk", "first-view-cpu-us", micros, map[string]float64{"Names/kernel": 11}},
	{"CPU microseconds for each name of the second walk", "second-view-cpu-us", micros, map[string]float64{"Names/kernel": 2.6}},
	{"Rate of a cold view ÷ rate of a lean S3 client", "view/lean", rates, map[string]float64{"Cold/small/tree": .45, "Cold/large/tree": .60}},
	{"CPU microseconds of the worker for each cold file", "worker-cpu-us/file", micros, map[string]float64{"Cold/small/tree": 300}},
	{"MB/s of one cold stream from a store 20 ms away", "far-MB/s", speeds, map[string]float64{"ColdStream/tree": 300, "ColdStream/kernel": 300}},
	{"Time of a cold read at random: view ÷ a lean S3 client that asks for just its bytes", "p50-view/lean", costs, nil},
	{"Random cold reads: time with read-ahead ÷ time without", "ahead/none", costs, readAhead(1.03)},
	{"Random cold reads: bytes from the store with read-ahead ÷ those without", "bytes-ahead/none", costs, readAhead(1.1)},
	{"Rate of reads from another worker ÷ rate of sendfile(2)", "peer/sendfile", rates, map[string]float64{"Peer": .85}},
	{"Small files from another worker: rate in batches ÷ rate one by one", "batched/single", rates, map[string]float64{"PeerSmall/4KiB": 3, "PeerSmall/100KiB": 3}},
	{"Time of a preload ÷ time of a lean S3 client", "preload/lean", costs, map[string]float64{"Preload/20000x100KiB": 1.1, "Preload/8x256MiB": 1.1}},
}

func readAhead(goal float64) map[string]float64 {
	goals := map[string]float64{}
	for _, link := range []string{"free", "full"} {
		for _, reads := range []string{"4KiB", "128KiB", "small"} {
			goals["ReadAhead/"+link+"/"+reads] = goal
		}
	}
	return goals
}

const (
	rowHeight, barHeight = 22, 14
	nameWidth, barsWidth = 290, 560
	width                = nameWidth + barsWidth + 80
)

// draw makes one picture of all charts that have bars. A bar's goal is a short
// upright line, a ratio of 1 a dashed one.
func draw(w io.Writer, results []result) error {
	var b strings.Builder
	y := 10
	for _, c := range charts {
		var rows []result
		longest := 1.0
		for _, r := range results {
			if v, ok := r.of(c.unit); ok {
				rows, longest = append(rows, r), max(longest, v, c.goals[r.name])
			}
		}
		if len(rows) == 0 {
			continue
		}
		scale, title := barsWidth/longest, c.title
		if c.kind.short {
			title += " (shorter is better)"
		}
		y += 24
		fmt.Fprintf(&b, "<text x=\"10\" y=\"%d\" font-weight=\"bold\">%s</text>\n", y, html.EscapeString(title))
		y += 8
		if c.kind.ratio {
			fmt.Fprintf(&b, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\" stroke=\"#999\" stroke-dasharray=\"3,3\"/>\n",
				nameWidth+scale, nameWidth+scale, y, y+len(rows)*rowHeight)
		}
		for _, r := range rows {
			v, _ := r.of(c.unit)
			drawBar(&b, c, r.name, v, scale, y)
			y += rowHeight
		}
		y += 16
	}
	_, err := fmt.Fprintf(w, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" font-size=\"13\">\n"+
		"<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n%s</svg>\n", width, y, b.String())
	return err
}

func drawBar(b *strings.Builder, c chart, name string, v, scale float64, y int) {
	goal, has := c.goals[name]
	color := "#4878a8"
	if has && (c.kind.short && v > goal || !c.kind.short && v < goal) {
		color = "#c44e52" // it misses its goal
	}
	fmt.Fprintf(b, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", nameWidth-8, y+15, html.EscapeString(name))
	fmt.Fprintf(b, "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>\n", nameWidth, y+4, max(v*scale, 1), barHeight, color)
	end := nameWidth + max(v*scale, 1)
	if mark := nameWidth + goal*scale; mark > end && mark < end+36 {
		end = mark // the figure would lie on it
	}
	fmt.Fprintf(b, "<text x=\"%.1f\" y=\"%d\">%s</text>\n", end+6, y+15, short(v))
	if has {
		x := nameWidth + goal*scale
		fmt.Fprintf(b, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\" stroke=\"black\" stroke-width=\"2\"/>\n", x, x, y+1, y+rowHeight-1)
	}
}
