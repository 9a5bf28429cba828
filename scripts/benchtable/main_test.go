package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const output = `goos: linux
BenchmarkViews/kernel/small/hot-2   	5	 0 ns/op	 0.4 view/disk	 7800 view-MB/s	 0 READs/file
BenchmarkRandom/kernel/4KiB/hot-2 	 3	 0 ns/op	 1.63 view-p50-us	 1.07 p50-view/disk
BenchmarkLookup-2 	 100	 656.0 ns/op	 0 B/op	 0 allocs/op
PASS
ok  	stoker.dev/internal/e2e	200.1s
`

func TestTable(t *testing.T) {
	dir := t.TempDir()
	csvFile, svgFile := filepath.Join(dir, "b.csv"), filepath.Join(dir, "b.svg")
	var echo, out strings.Builder
	if err := run(strings.NewReader(output), &echo, &out, csvFile, svgFile); err != nil {
		t.Fatal(err)
	}
	if echo.String() != output {
		t.Errorf("passed on %q", echo.String())
	}
	if !strings.Contains(out.String(), "Views/kernel/small/hot") || !strings.Contains(out.String(), "7800") || strings.Contains(out.String(), " 0 ns/op") {
		t.Errorf("the table is\n%s", out.String())
	}
	body, err := os.ReadFile(csvFile)
	want := "benchmark,metric,value\nViews/kernel/small/hot,view/disk,0.4\nViews/kernel/small/hot,view-MB/s,7800\nViews/kernel/small/hot,READs/file,0\n" +
		"Random/kernel/4KiB/hot,view-p50-us,1.63\nRandom/kernel/4KiB/hot,p50-view/disk,1.07\nLookup,ns/op,656\nLookup,B/op,0\nLookup,allocs/op,0\n"
	if err != nil || string(body) != want {
		t.Errorf("the CSV is %q, %v", body, err)
	}
	checkPicture(t, svgFile)
}

// checkPicture: it is well-formed, with one bar of a rate, which misses its goal, and
// one of a time, which does not.
func checkPicture(t *testing.T, name string) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fills := map[string]int{}
	for d := xml.NewDecoder(f); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "rect" {
			for _, a := range e.Attr {
				if a.Name.Local == "fill" {
					fills[a.Value]++
				}
			}
		}
	}
	if fills["#c44e52"] != 1 || fills["#4878a8"] != 1 {
		t.Errorf("bars: %v", fills)
	}
}

// A run that failed, or measured nothing, makes no table.
func TestRunsThatFailed(t *testing.T) {
	for name, in := range map[string]string{
		"failed":  output + "--- FAIL: BenchmarkCold\n",
		"nothing": "PASS\n", "empty": "", "no number": "BenchmarkX-2 1 fast ns/op\n",
	} {
		file := filepath.Join(t.TempDir(), "b.csv")
		if err := run(strings.NewReader(in), io.Discard, io.Discard, file, ""); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := os.Stat(file); err == nil {
			t.Errorf("%s: a table was written", name)
		}
	}
}
