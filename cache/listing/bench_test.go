package listing

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sync/errgroup"

	"stoker.dev/internal/testenv"
	"stoker.dev/ufs"
	"stoker.dev/ufs/s3ufs"
)

const listedObjects = 100_000

// trees are what is listed: the same number of objects, in folders.
var trees = map[string]func(i int) (folder, name string){
	"flat":          func(i int) (string, string) { return "", fmt.Sprintf("img_%08d.jpg", i) },
	"100-folders":   func(i int) (string, string) { return fmt.Sprintf("n%08d/", i/1000*137), fmt.Sprintf("%05d.JPEG", i) },
	"10000-folders": func(i int) (string, string) { return fmt.Sprintf("n%08d/", i/10*137), fmt.Sprintf("%05d.JPEG", i) },
}

// part is one range of keys, as one who knows them all would cut it.
type part struct{ prefix, after, until string }

// reference is the SDK's paginator over some parts, some at a time.
func reference(ctx context.Context, c *s3.Client, bucket string, parts []part, parallel int) (int64, error) {
	var n atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, p := range parts {
		g.Go(func() error {
			in := &s3.ListObjectsV2Input{Bucket: &bucket}
			if p.prefix != "" {
				in.Prefix = &p.prefix
			}
			if p.after != "" {
				in.StartAfter = &p.after
			}
			for pages := s3.NewListObjectsV2Paginator(c, in); pages.HasMorePages(); {
				out, err := pages.NextPage(ctx)
				if err != nil {
					return err
				}
				for _, o := range out.Contents {
					if p.until != "" && *o.Key > p.until {
						return nil
					}
					n.Add(1)
				}
			}
			return nil
		})
	}
	err := g.Wait()
	return n.Load(), err
}

// BenchmarkListing compares a listing with the fastest of several: the SDK's
// paginator over all folders, and over ranges of keys that are cut where they
// should be, since it is told all keys; with few requests in flight and many.
func BenchmarkListing(b *testing.B) {
	srv := testenv.StartS3(b)
	for _, name := range slices.Sorted(maps.Keys(trees)) {
		b.Run(name, func(b *testing.B) {
			bucket := "listed-" + name
			keys, folders := makeTree(b, srv.Bucket(b, bucket), trees[name])
			cfg, err := config.LoadDefaultConfig(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			sdk := s3.NewFromConfig(cfg, func(o *s3.Options) { o.BaseEndpoint, o.UsePathStyle = aws.String(srv.Endpoint), true })
			var ranges []part
			for i := range 16 {
				ranges = append(ranges, part{after: keys[max(i*len(keys)/16-1, 0)], until: keys[(i+1)*len(keys)/16-1]})
			}
			ranges[0].after = ""
			ours, err := s3ufs.Open(b.Context(), s3ufs.Options{Bucket: bucket, Location: ufs.Location{Endpoint: srv.Endpoint, PathStyle: true}})
			if err != nil {
				b.Fatal(err)
			}
			rivals := map[string]func() (int64, error){}
			for _, parallel := range []int{2, 16} {
				rivals[fmt.Sprint("sdk-ranges-", parallel)] = func() (int64, error) { return reference(b.Context(), sdk, bucket, ranges, parallel) }
				if len(folders) > 1 && len(folders) <= 1000 {
					rivals[fmt.Sprint("sdk-folders-", parallel)] = func() (int64, error) { return reference(b.Context(), sdk, bucket, folders, parallel) }
				}
			}
			rivals["sdk-one"] = func() (int64, error) { return reference(b.Context(), sdk, bucket, []part{{}}, 1) }
			const own = "stoker"
			rivals[own] = func() (n int64, err error) {
				var sum atomic.Int64
				err = List(b.Context(), optionsFor(ours, 16, ""), func(_ int, objects []ufs.Object) error {
					sum.Add(int64(len(objects)))
					return nil
				})
				return sum.Load(), err
			}
			took := map[string][]time.Duration{}
			for b.Loop() {
				for _, who := range slices.Sorted(maps.Keys(rivals)) {
					begin := time.Now()
					n, err := rivals[who]()
					if err != nil || n != listedObjects {
						b.Fatalf("%s lists %d objects: %v", who, n, err)
					}
					took[who] = append(took[who], time.Since(begin))
				}
			}
			report(b, took, own)
		})
	}
}

func report(b *testing.B, took map[string][]time.Duration, own string) {
	median := func(who string) float64 {
		slices.Sort(took[who])
		return listedObjects / took[who][len(took[who])/2].Seconds()
	}
	best, rate := "", 0.0
	for who := range took {
		if r := median(who); who != own {
			b.Logf("%-14s %8.0f objects/s", who, r)
			if r > rate {
				best, rate = who, r
			}
		}
	}
	b.Logf("%-14s %8.0f objects/s, the fastest other is %s", own, median(own), best)
	b.ReportMetric(median(own), "objects/s")
	b.ReportMetric(median(own)/rate, "ratio")
	b.ReportMetric(0, "ns/op")
}

// makeTree makes empty files and returns their keys in order, and the folders.
func makeTree(b *testing.B, dir string, at func(i int) (folder, name string)) (keys []string, folders []part) {
	b.Helper()
	last := ""
	for i := range listedObjects {
		folder, name := at(i)
		if folder != last || i == 0 {
			last, folders = folder, append(folders, part{prefix: folder})
			if err := os.MkdirAll(filepath.Join(dir, folder), 0o755); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, folder, name), nil, 0o644); err != nil {
			b.Fatal(err)
		}
		keys = append(keys, folder+name)
	}
	slices.Sort(keys)
	return keys, folders
}
