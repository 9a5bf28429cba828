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
	time  bool   // of reads that are timed one by one: shorter is better
}

var charts = []chart{
	{"Rate of the view ÷ rate of the local disk", "view/disk", false},
	{"Time of a read: view ÷ local disk (shorter is better)", "view/disk", true},
	{"First walk over a million names: rate of the view ÷ rate of the local disk", "first-view/disk", false},
	{"Second walk over them", "second-view/disk", false},
	{"Rate of reads from another worker ÷ rate of sendfile(2)", "peer/sendfile", false},
	{"Small files from another worker: rate in batches ÷ rate one by one", "batched/single", false},
	{"Rate of a cold view ÷ rate of a lean S3 client", "view/lean", false},
	{"Random cold reads: time with read-ahead ÷ time without (shorter is better)", "ahead/none", false},
	{"… and bytes from the store ÷ those without (shorter is better)", "bytes-ahead/none", false},
	{"Time of a preload ÷ time of a lean S3 client (shorter is better)", "preload/lean", false},
}

// goals are what a bar is to reach (rates), or not to exceed (times), by benchmark
// and, behind it, what its unit begins with.
var goals = map[string]float64{
	"Views/kernel/large/hot": .90, "Views/kernel/small/hot": .90, "Views/kernel/tiny/hot": .90,
	"Views/kernel/large/dropped": .95, "Views/kernel/small/dropped": .85, "Views/kernel/tiny/dropped": .80,
	"Views/tree/small/hot": .85, "Views/tree/small/dropped": .65, "Views/tree/large/hot": .60,
	"Names/tree/second": .80, "Cold/small": .45, "Cold/large": .60,
	"Random/kernel/4KiB/hot": 1.15, "Random/kernel/4KiB/dropped": 1.15, "Random/kernel/128KiB/hot": 1.15,
	"Random/kernel/128KiB/dropped": 1.15, "Random/kernel/mapped/hot": 1.15, "Random/kernel/mapped/dropped": 1.15,
	"Peer": .85, "PeerSmall/4KiB": 3, "PeerSmall/100KiB": 3,
	"Preload/20000x100KiB": 1.1, "Preload/8x256MiB": 1.1,
	"ReadAhead/free/4KiB": 1.03, "ReadAhead/free/128KiB": 1.03, "ReadAhead/free/small": 1.03,
	"ReadAhead/full/4KiB": 1.03, "ReadAhead/full/128KiB": 1.03, "ReadAhead/full/small": 1.03,
	"ReadAhead/free/4KiB/bytes": 1.1, "ReadAhead/free/128KiB/bytes": 1.1, "ReadAhead/free/small/bytes": 1.1,
	"ReadAhead/full/4KiB/bytes": 1.1, "ReadAhead/full/128KiB/bytes": 1.1, "ReadAhead/full/small/bytes": 1.1,
}

func goalOf(name, unit string) (goal float64, has bool) {
	if part, _, ok := strings.Cut(unit, "-"); ok {
		name += "/" + part
	}
	goal, has = goals[name]
	return goal, has
}

const (
	rowHeight, barHeight = 22, 14
	nameWidth, barsWidth = 260, 560
	width                = nameWidth + barsWidth + 80
)

// draw makes one picture of all charts that have bars. A bar's goal is a short
// upright line.
func draw(w io.Writer, results []result) error {
	var b strings.Builder
	y := 10
	for _, c := range charts {
		var rows []result
		longest := 1.0
		for _, r := range results {
			_, timed := r.of("view-p50-us")
			if v, ok := r.of(c.unit); ok && timed == c.time {
				goal, _ := goalOf(r.name, c.unit)
				rows, longest = append(rows, r), max(longest, v, goal)
			}
		}
		if len(rows) == 0 {
			continue
		}
		scale := barsWidth / longest
		y += 24
		fmt.Fprintf(&b, "<text x=\"10\" y=\"%d\" font-weight=\"bold\">%s</text>\n", y, html.EscapeString(c.title))
		y += 8
		fmt.Fprintf(&b, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\" stroke=\"#999\" stroke-dasharray=\"3,3\"/>\n",
			nameWidth+scale, nameWidth+scale, y, y+len(rows)*rowHeight)
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
	goal, has := goalOf(name, c.unit)
	short := c.time || c.unit == "preload/lean" || strings.HasSuffix(c.unit, "ahead/none") // is better
	color := "#4878a8"
	if has && (short && v > goal || !short && v < goal) {
		color = "#c44e52" // it misses its goal
	}
	fmt.Fprintf(b, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", nameWidth-8, y+15, html.EscapeString(name))
	fmt.Fprintf(b, "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>\n", nameWidth, y+4, max(v*scale, 1), barHeight, color)
	end := nameWidth + max(v*scale, 1)
	if mark := nameWidth + goal*scale; mark > end && mark < end+36 {
		end = mark // the figure would lie on it
	}
	fmt.Fprintf(b, "<text x=\"%.1f\" y=\"%d\">%.2f</text>\n", end+6, y+15, v)
	if has {
		x := nameWidth + goal*scale
		fmt.Fprintf(b, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\" stroke=\"black\" stroke-width=\"2\"/>\n", x, x, y+1, y+rowHeight-1)
	}
}
