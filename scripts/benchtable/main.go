// Command benchtable makes of what `go test -bench` prints a table for people, a CSV
// for programs and a picture of the ratios.
//
//	go test -bench . ./... | go run ./scripts/benchtable -csv bench.csv -svg bench.svg
//
// What it reads it passes on to standard error, so that a long run can be watched.
package main

import (
	"bufio"
	"encoding/csv"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"text/tabwriter"
)

func main() {
	csvFile := flag.String("csv", "", "write benchmark, metric and value of each figure to this `file`")
	svgFile := flag.String("svg", "", "draw the ratios into this `file`")
	flag.Parse()
	if err := run(os.Stdin, os.Stderr, os.Stdout, *csvFile, *svgFile); err != nil {
		fmt.Fprintln(os.Stderr, "benchtable:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, echo, out io.Writer, csvFile, svgFile string) error {
	results, err := parse(in, echo)
	if err != nil {
		return err
	}
	if err := table(out, results); err != nil {
		return err
	}
	return errors.Join(
		toFile(csvFile, func(w io.Writer) error { return writeCSV(w, results) }),
		toFile(svgFile, func(w io.Writer) error { return draw(w, results) }))
}

// result is one benchmark's figures, in the order in which they were printed.
type result struct {
	name    string
	metrics []metric
}

type metric struct {
	unit  string
	value float64
}

func (r *result) of(unit string) (float64, bool) {
	for _, m := range r.metrics {
		if m.unit == unit {
			return m.value, true
		}
	}
	return 0, false
}

var cpus = regexp.MustCompile(`-\d+$`) // GOMAXPROCS, behind a benchmark's name

// parse takes the results out of a run's output. One in which something failed has
// none: half a table would be taken for a whole one.
func parse(in io.Reader, echo io.Writer) (results []result, err error) {
	failed := ""
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		fmt.Fprintln(echo, line)
		if strings.HasPrefix(line, "FAIL") || strings.HasPrefix(line, "--- FAIL") {
			failed = line
		}
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		r := result{name: cpus.ReplaceAllString(strings.TrimPrefix(f[0], "Benchmark"), "")}
		for i := 2; i+1 < len(f); i += 2 {
			v, err := strconv.ParseFloat(f[i], 64)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", line, err)
			}
			if f[i+1] != "ns/op" || v != 0 { // 0: a loop is a pair, its time says nothing
				r.metrics = append(r.metrics, metric{f[i+1], v})
			}
		}
		results = append(results, r)
	}
	switch {
	case lines.Err() != nil:
		return nil, lines.Err()
	case failed != "":
		return nil, fmt.Errorf("the run failed: %s", failed)
	case len(results) == 0:
		return nil, errors.New("no benchmark was run")
	}
	return results, nil
}

func table(w io.Writer, results []result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, r := range results {
		for i, m := range r.metrics {
			name := r.name
			if i > 0 {
				name = ""
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t\n", name, m.unit, short(m.value))
		}
	}
	return t.Flush()
}

// short has three digits that mean something.
func short(v float64) string {
	switch s := strconv.FormatFloat(v, 'g', 3, 64); {
	case v >= 1000:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case strings.Contains(s, "e"):
		return strconv.FormatFloat(v, 'f', 4, 64)
	default:
		return s
	}
}

func writeCSV(w io.Writer, results []result) error {
	c := csv.NewWriter(w)
	_ = c.Write([]string{"benchmark", "metric", "value"}) // errors show at Flush
	for _, r := range results {
		for _, m := range r.metrics {
			_ = c.Write([]string{r.name, m.unit, strconv.FormatFloat(m.value, 'g', -1, 64)})
		}
	}
	c.Flush()
	return c.Error()
}

func toFile(name string, write func(io.Writer) error) error {
	if name == "" {
		return nil
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}
