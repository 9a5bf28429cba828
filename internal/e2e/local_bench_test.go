package e2e

import (
	"slices"
	"testing"
)

// BenchmarkLayouts preloads a dataset on three workers, turn and turn about with
// its shards spread and with all of it on each worker: from the store, and from one
// worker that has it already. Freeing the disks is not timed. It reports medians:
// MB/s of the dataset for each, and how much longer local takes than spread.
func BenchmarkLayouts(b *testing.B) {
	c := up(b, 3, "2GiB", func(root string) { makeEqualFiles(b, root, 5000, 100<<10, 4, 64<<20) })
	c.must("dataset", "add", "data", "s3://data", "--endpoint", c.getenv("STOKER_S3_ENDPOINT"), "--path-style")
	one := c.worker("worker-1").ID
	layouts := []struct {
		name  string
		more  []string
		first []string // preloaded before, and not timed; nil = nothing is there
	}{
		{"spread", []string{"--layout", "spread"}, nil},
		{"local", []string{"--layout", "local"}, nil},
		{"local-from-one", []string{"--layout", "local"}, []string{"--layout", "local", "--nodes", one}},
	}
	rates, ratio := make([][]float64, len(layouts)), []float64{}
	for i := 0; b.Loop(); i++ {
		order := []int{0, 1, 2}
		if i%2 == 1 {
			slices.Reverse(order)
		}
		var seconds [3]float64
		for _, k := range order {
			l := layouts[k]
			c.must("evict", "data")
			if l.first != nil {
				c.must(append([]string{"preload", "data", "--wait"}, l.first...)...)
			}
			cert := c.certificate(c.must(append([]string{"preload", "data", "--wait", "-o", "json"}, l.more...)...))
			if (cert.UFSBytes == 0) != (l.first != nil) || cert.UFSBytes > cert.Bytes {
				b.Errorf("%s: %d bytes from the UFS, the dataset has %d", l.name, cert.UFSBytes, cert.Bytes)
			}
			seconds[k] = cert.Seconds
			rates[k] = append(rates[k], float64(cert.Bytes)/1e6/cert.Seconds)
		}
		ratio = append(ratio, seconds[1]/seconds[0])
	}
	b.ReportMetric(0, "ns/op") // a loop is all of them: its time says nothing
	for k, l := range layouts {
		b.ReportMetric(median(rates[k]), l.name+"-MB/s")
	}
	b.ReportMetric(median(ratio), "local/spread")
}
