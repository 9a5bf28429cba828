package main

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// report is what the demo measured.
type report struct {
	train         training
	loaded        counts // at the S3 side, up to the first epoch
	ready, second time.Duration
	secondBytes   int64
	freed         int64
	direct, local epoch

	redis, temporal string
}

func (r *report) print(w io.Writer, d *demo) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "  %-28s%s\n", name, fmt.Sprintf(format, args...))
	}
	fmt.Fprintf(w, "\nReport\n\n")
	line("dataset", "%d files, %s", d.data.files, human(d.data.bytes))
	line("submit to running", "%.1f s: listing age checked, loaded, verified, mounted", r.ready.Seconds())
	line("UFS bytes / dataset bytes", "%.3f (%d requests)", float64(r.loaded.Bytes)/float64(d.data.bytes), r.loaded.Requests)
	line("second job", "%.1f s from submit to its end, %d bytes from the UFS", r.second.Seconds(), r.secondBytes)
	line("evict", "freed %s", human(r.freed))
	line("Redis held", "%s", r.redis)
	line("Temporal held", "%s", r.temporal)
	fmt.Fprintf(w, "\n  %-28s%10s %10s %14s\n", "epoch, SHA-256 included", "files/s", "MB/s", "UFS requests")
	row := func(name string, e epoch, ufs string) {
		s := e.Seconds
		fmt.Fprintf(w, "  %-28s%10.0f %10.0f %14s\n", name, float64(d.data.files)/s, float64(d.data.bytes)/1e6/s, ufs)
	}
	for i, e := range r.train.Epochs {
		row(fmt.Sprintf("%d from the mount", i+1), e, fmt.Sprint(e.After.Requests-e.Before.Requests))
	}
	row("from S3 directly", r.direct, fmt.Sprint(d.data.files))
	row("from the local disk", r.local, "0")
	fmt.Fprintf(w, "\n  %d processes of %d readers each; %.0f s in all\n", demoRanks, readers, time.Since(d.began).Seconds())
}

// judge fails the demo if a promise was broken.
func (r *report) judge(d *demo) error {
	var errs []error
	if r.loaded.Bytes != d.data.bytes {
		errs = append(errs, fmt.Errorf("the store sent %d bytes for a dataset of %d", r.loaded.Bytes, d.data.bytes))
	}
	for i, e := range r.train.Epochs {
		if n := e.After.Requests - e.Before.Requests; n != 0 {
			errs = append(errs, fmt.Errorf("epoch %d made %d requests to the store", i+1, n))
		}
	}
	if r.secondBytes != 0 {
		errs = append(errs, fmt.Errorf("the second job made the store send %d bytes", r.secondBytes))
	}
	return errors.Join(errs...)
}
