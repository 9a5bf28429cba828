package erofs_test

import (
	"fmt"
	"io"
	"runtime"
	"testing"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/fuse/erofs"
)

// nowhere takes an image and forgets it.
type nowhere struct{}

func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

var _ io.WriterAt = nowhere{}

// However many files there are, writing an image takes a few megabytes in all.
func TestWriteTakesNoMemory(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	n, err := erofs.Write(t.Context(), nowhere{}, many{n: 300_000}, erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 8<<20 {
		t.Errorf("an image of %d bytes took %d bytes of memory", n, took)
	}
}

// BenchmarkWrite writes images of folders of 1,300 files, as ImageNet's, and
// reports bytes of the image and time for each file.
func BenchmarkWrite(b *testing.B) {
	for _, files := range []int{100_000, 1_000_000, 10_000_000} {
		b.Run(fmt.Sprint(files), func(b *testing.B) {
			l := folders{files / 1300, 1300}
			var n int64
			for b.Loop() {
				var err error
				if n, err = erofs.Write(b.Context(), nowhere{}, l, erofs.Options{}); err != nil {
					b.Fatal(err)
				}
			}
			total := float64(l.n * l.each)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/total, "ns/file")
			b.ReportMetric(float64(n)/total, "bytes/file")
			var mem runtime.MemStats
			runtime.ReadMemStats(&mem)
			b.ReportMetric(float64(mem.Sys)/(1<<20), "MiB-of-process")
		})
	}
}

// folders is a listing of n folders of files of 100 KiB each.
type folders struct{ n, each int }

func (l folders) Rows() int { return 1 + l.n + l.n*l.each }

func (l folders) Shards() int { return (l.n*l.each + 639) / 640 }

func (l folders) Entry(r manifest.Row) manifest.Entry {
	switch i := int(r) - 1 - l.n; {
	case r == 0:
		return manifest.Entry{Kind: manifest.Directory, FirstChild: 1, Children: uint32(l.n)}
	case i < 0:
		return manifest.Entry{Kind: manifest.Directory, FirstChild: manifest.Row(1 + l.n + (int(r)-1)*l.each), Children: uint32(l.each)}
	default:
		return manifest.Entry{Parent: manifest.Row(1 + i/l.each), Bytes: 100 << 10, Shard: uint32(i / 640), Off: int64(i%640) * (100 << 10)}
	}
}

func (l folders) ReadDir(dir manifest.Row, from int, fn func(manifest.Row, []byte) bool) {
	name := []byte("n00000000_00000000.JPEG")
	if dir == 0 {
		name = name[:9]
	}
	e := l.Entry(dir)
	for i := from; i < int(e.Children); i++ {
		for k, v := 8, i; dir == 0 && k > 0; k, v = k-1, v/10 {
			name[k] = '0' + byte(v%10)
		}
		for k, v := 17, i; dir != 0 && k > 9; k, v = k-1, v/10 {
			name[k] = '0' + byte(v%10)
		}
		if !fn(e.FirstChild+manifest.Row(i), name) {
			return
		}
	}
}

func (l folders) ID() stoker.ID                                { return stoker.ID{1} }
func (l folders) Header() manifest.Header                      { return manifest.Header{} }
func (l folders) AppendLink(dst []byte, _ manifest.Row) []byte { return dst }
func (l folders) Shard(uint32) manifest.Shard                  { return manifest.Shard{Bytes: stoker.ExtentBytes} }
