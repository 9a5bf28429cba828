package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stoker.dev/planner/order"
)

// makeClasses writes a dataset as ImageFolder has it, beside files that are no samples,
// and returns the samples in their order.
func makeClasses(t testing.TB, root string, n, size int) (names []string) {
	t.Helper()
	r := rand.NewChaCha8([32]byte{4})
	write := func(name string, size int) {
		body := make([]byte, size)
		_, _ = r.Read(body)
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, body, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		name := fmt.Sprintf("train/n%02d/%05d.jpg", i/100, i)
		write(name, size)
		names = append(names, name)
	}
	write("LICENSE", 100)
	write("train/n00/.listing", 100)
	write("val/n00/00000.jpg", size)
	return names
}

// batches is what a rank reads in an epoch, some workers a batch each at a time.
func batches(s order.Sampler, n, rank int, epoch uint64, workers, batch int) (out []uint32) {
	all, steps := s.Permutation(n, epoch), s.Steps(n)
	for begin := 0; begin < steps; begin += workers * batch {
		for i := range batch {
			for w := range workers {
				if step := begin + w*batch + i; step < steps {
					out = append(out, s.At(all, rank, step))
				}
			}
		}
	}
	return out
}

// A view that is told the job's sampler fetches what the job reads next before it is
// read: each file by one request, and none of another rank but the first ones of the
// next epoch. A worker that is killed finds the epoch again in its next life. Told of
// a sampler that the job has not, it fetches what is read and nothing else.
func TestDeclaredSamplerIsReadAhead(t *testing.T) {
	const files, size, flights = 1600, 256 << 10, 32
	const window = 4 << 20 / size
	var names []string
	c := up(t, 1, "1GiB", func(root string) { names = makeClasses(t, root, files, size) })
	c.add()
	read := func(view string, list []uint32) {
		t.Helper()
		for _, i := range list {
			got, err := os.ReadFile(filepath.Join(view, names[i]))
			want, _ := os.ReadFile(filepath.Join(c.root, "data", names[i]))
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%s: %d bytes, %v", names[i], len(got), err)
			}
		}
	}
	view := t.TempDir()
	mount := []string{"mount", "data", view, "--view", "tree", "--path", "train", "--include", "*.jpg"}
	sampler := order.Sampler{Seed: 3, World: 2}
	list := batches(sampler, files, 1, 6, 4, 16)
	const killed, found = 200, 550 // reads; what lies between had come ahead, or shows the epoch

	c.must(append(mount, "--sampler", sampler.String())...)
	read(view, list[:100])
	c.eventually("the epoch is recognised", func() bool { return c.readsOfWorker().Ahead.Epochs == 1 })
	read(view, list[100:killed])
	if used := c.readsOfWorker().Ahead.UsedBytes; used < (killed-110)*size {
		t.Errorf("of %d files %d had come ahead", killed, used/size)
	}
	second := c.secondRequests()
	c.kill("worker-1")
	c.dev("start", "worker-1", "--dir", c.dir)
	read(view, list[killed:found])
	c.eventually("the epoch is recognised once more", func() bool { return c.readsOfWorker().Ahead.Epochs == 1 })
	read(view, list[found:])
	if used := c.readsOfWorker().Ahead.UsedBytes; used < int64(len(list)-found-10)*size {
		t.Errorf("of %d files %d had come ahead after a restart", len(list)-found, used/size)
	}
	c.eventually("what was begun has come", func() bool {
		before := c.proxy.Gets()
		reads := c.readsOfWorker()
		return reads.Ahead.Bytes > 0 && c.proxy.Gets() == before
	})
	// What was on its way when the worker was killed came twice, and what readers waited for.
	second += c.secondRequests()
	if n, b := c.proxy.Gets(), c.proxy.Bytes(); n > int64(len(list)+window+flights)+second || b > n*size {
		t.Errorf("%d requests, %d of them second ones, %d bytes for %d files of %d", n, second, b, len(list), size)
	}
	wanted := map[uint32]bool{}
	for _, i := range append(list, batches(sampler, files, 1, 7, 1, 1)[:window]...) {
		wanted[i] = true
	}
	fetched := c.proxy.BytesByKey()
	for i, name := range names {
		if fetched["/data/"+name] > 0 && !wanted[uint32(i)] {
			t.Errorf("%s is of another rank, and was fetched", name)
		}
	}
	c.must("umount", view)
	c.must("evict", "data", "--force")

	c.proxy.Reset()
	before := c.readsOfWorker().Ahead.Bytes
	second = c.secondRequests()
	c.must(append(mount, "--sampler", "pytorch:seed=1000000,world=2")...)
	read(view, list)
	// A read that waits for long is asked for twice: it is all that may come beside.
	keys, gets := len(c.proxy.BytesByKey()), c.proxy.Gets()
	second = c.secondRequests() - second
	if keys != len(list) || gets > int64(len(list))+second || c.readsOfWorker().Ahead.Bytes != before {
		t.Errorf("with another seed: %d files were fetched of %d, by %v, %d of them second ones; %d bytes came ahead", keys, len(list), c.proxy, second, c.readsOfWorker().Ahead.Bytes-before)
	}
	c.must("umount", view)
}

// A DataLoader of the PyTorch that Debian has, with a DistributedSampler and three
// processes that read, finds its files there: it reads what the order says, and most of
// that had come ahead.
func TestPyTorchIsReadAhead(t *testing.T) {
	if os.Getenv("STOKER_TEST_LONG") == "" {
		t.Skip("torch takes 300 MB: make test-long runs it")
	}
	const files, size = 1500, 64 << 10
	c := up(t, 1, "1GiB", func(root string) { makeClasses(t, root, files, size) })
	c.add()
	view := t.TempDir()
	c.must("mount", "data", view, "--view", "tree", "--path", "train", "--include", "*.jpg", "--sampler", "pytorch:seed=11,world=2")
	out, err := exec.Command("/usr/bin/python3", "-W", "ignore", filepath.Join("testdata", "sampled.py"), filepath.Join(view, "train")).Output()
	if err != nil {
		t.Fatal(err)
	}
	var got, want [2][]uint32
	for line := range strings.Lines(string(out)) {
		epoch := -1
		for i, word := range strings.Fields(line) {
			n, err := strconv.Atoi(word)
			if err != nil || i == 0 && n > 1 {
				t.Fatalf("%v: %q", err, line)
			}
			if i == 0 {
				epoch = n
			} else {
				got[epoch] = append(got[epoch], uint32(n))
			}
		}
	}
	sampler, read := order.Sampler{Seed: 11, World: 2}, map[uint32]bool{}
	for epoch := range want {
		want[epoch] = batches(sampler, files, 1, uint64(epoch), 1, 1)
		if !slices.Equal(got[epoch], want[epoch]) {
			t.Errorf("epoch %d: %d samples, not in the order %s", epoch, len(got[epoch]), sampler)
		}
		for _, i := range want[epoch] {
			read[i] = true
		}
	}
	c.within(10*time.Second, "what was begun has come", func() bool { b := c.proxy.Bytes(); c.readsOfWorker(); return b == c.proxy.Bytes() })
	reads := c.readsOfWorker()
	if used := int(reads.Ahead.UsedBytes / size); used < len(read)-200 || reads.Ahead.Epochs != 2 {
		t.Errorf("of %d files %d had come ahead, in %d epochs", len(read), used, reads.Ahead.Epochs)
	}
	if n := c.proxy.Gets(); n > int64(len(read)*102/100+64) {
		t.Errorf("%d requests for %d files", n, len(read))
	}
	t.Logf("%d of %d files had come ahead; %v", reads.Ahead.UsedBytes/size, len(read), c.proxy)
	c.must("umount", view)
}

// The sampler of a claim stands in the record of the job's mounts, with the files that
// it is the order of, and in its status.
func TestSubmitTellsItsMountsOfTheSampler(t *testing.T) {
	c := up(t, 1, "1GiB", func(root string) { makeClasses(t, root, 200, 1000) })
	c.add()
	end := filepath.Join(t.TempDir(), "end")
	if err := unix.Mkfifo(end, 0o600); err != nil {
		t.Fatal(err)
	}
	job, out := c.background("submit", "--job-id", "sampled", "--dataset", "data", "--path", "train", "--sampler", "pytorch:world=8,seed=1", "--", "cat", end)
	c.eventually("it is mounted", func() bool { return len(c.workerStatus(1).Mounts) == 1 })
	m := c.workerStatus(1).Mounts[0]
	if m.Sampler != "pytorch:seed=1,world=8" || m.Selection == nil || !slices.Equal(m.Selection.Paths, []string{"train"}) {
		t.Errorf("%+v", m)
	}
	if st := c.status("sampled"); st.Sampler != m.Sampler {
		t.Errorf("status has the sampler %q", st.Sampler)
	}
	if err := os.WriteFile(end, []byte("over"), 0); err != nil {
		t.Error(err)
	}
	if err := job.Wait(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// BenchmarkSampledEpoch reads an epoch of 3,000 files of 100 KiB, of which nothing is
// cached, from a store 20 ms away: as a DataLoader with 8 workers reads it, in the
// order of its sampler, which the view is told or not told, turn and turn about. It
// reports medians.
func BenchmarkSampledEpoch(b *testing.B) {
	const files, size, workers, batch = 3000, 100 << 10, 8, 32
	var names []string
	c := up(b, 1, "2GiB", func(root string) { names = makeClasses(b, root, files, size) })
	c.add()
	c.far(20 * time.Millisecond)
	sampler := order.Sampler{World: 1}
	list := sampler.Permutation(files, 0)
	var rate [2][]float64
	var ahead []float64
	epoch := func(told int) {
		view := b.TempDir()
		args := []string{"mount", "data", view, "--view", "tree"}
		if told == 1 {
			args = append(args, "--sampler", sampler.String(), "--path", "train", "--include", "*.jpg")
		}
		c.must(args...)
		before := c.readsOfWorker()
		began := time.Now()
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				buf := make([]byte, 1<<20)
				for at := w * batch; at < files; at += workers * batch {
					for _, i := range list[at:min(at+batch, files)] {
						if n, err := readFile(filepath.Join(view, names[i]), buf); err != nil || n != size {
							b.Errorf("%s: %d bytes, %v", names[i], n, err)
						}
					}
				}
			})
		}
		wg.Wait()
		rate[told] = append(rate[told], files/time.Since(began).Seconds())
		after := c.readsOfWorker()
		if told == 1 {
			ahead = append(ahead, float64(after.Ahead.UsedBytes-before.Ahead.UsedBytes)/size/files)
		}
		c.must("umount", view)
		c.must("evict", "data", "--force")
	}
	for i := 0; b.Loop(); i++ {
		epoch(i % 2)
		epoch(1 - i%2)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(rate[0]), "untold-files/s")
	b.ReportMetric(median(rate[1]), "told-files/s")
	b.ReportMetric(median(rate[1])/median(rate[0]), "told/untold")
	b.ReportMetric(median(ahead), "ahead")
}
