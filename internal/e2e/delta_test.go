package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/store"
	"stoker.dev/internal/api"
)

// changeByPut gives every hundredth object, at random, other bytes by PUTs and
// returns how many bytes the new ones have.
func (c *cluster) changeByPut(r *rand.Rand) (changed int64) {
	c.t.Helper()
	client := s3.New(s3.Options{
		BaseEndpoint: aws.String(c.getenv("STOKER_S3_ENDPOINT")), Region: c.getenv("AWS_REGION"), UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(c.getenv("AWS_ACCESS_KEY_ID"), c.getenv("AWS_SECRET_ACCESS_KEY"), ""),
	})
	var keys []string
	root := filepath.Join(c.root, "data")
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			keys = append(keys, strings.TrimPrefix(p, root+"/"))
		}
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, i := range r.Perm(len(keys))[:len(keys)/100] {
		body := make([]byte, 1+r.IntN(200<<10))
		for k := range body {
			body[k] = byte(r.Uint32())
		}
		changed += int64(len(body))
		in := &s3.PutObjectInput{Bucket: aws.String("data"), Key: aws.String(keys[i]), Body: bytes.NewReader(body)}
		if _, err := client.PutObject(c.t.Context(), in); err != nil {
			c.t.Fatalf("PUT %s: %v", keys[i], err)
		}
	}
	return changed
}

// One percent of the objects changes. The workers have room for 1.3 times the
// dataset, so the old generation goes piece by piece while the new one is
// copied from it, and the UFS sends what changed.
func TestDeltaPreload(t *testing.T) {
	const capacity = 650 << 20
	var size int64
	c := up(t, 2, fmt.Sprint(capacity), func(root string) { size = makeFiles(t, root, 4000, 500<<10, 0, 0) })
	c.add()
	c.ready(c.certificate(c.must("preload", "data", "--wait", "-o", "json")), size)
	changed := c.changeByPut(rand.New(rand.NewPCG(3, 3)))
	if d := c.detail("dataset", "sync", "data"); d.Unchanged || d.Generation != 2 {
		t.Fatalf("after the changes: %+v", d)
	}
	c.proxy.Reset()
	cert := c.certificate(c.must("preload", "data", "--wait", "-o", "json"))
	t.Logf("%d of %d bytes changed, the second generation cost %d", changed, size, cert.UFSBytes)
	if cert.State != api.CertificateReady || cert.Generation != 2 || cert.UFSBytes > changed*11/10 || cert.UFSBytes != c.proxy.Bytes() {
		t.Errorf("%d bytes changed, the S3 side sent %d: %+v", changed, c.proxy.Bytes(), cert)
	}
	c.settled()
	c.sameEverywhere(t, 1, capacity)
	if got := c.proxy.Bytes(); got != cert.UFSBytes {
		t.Errorf("reading the second generation fetched %d bytes more", got-cert.UFSBytes)
	}
}

// killInTheMiddle preloads a generation, and kills a worker when the S3 side has
// sent so many bytes; it comes back at once.
func (c *cluster) killInTheMiddle(worker string, bytes int64) api.Certificate {
	c.t.Helper()
	reached, release := c.proxy.Hold(bytes)
	defer release()
	done := c.preload()
	<-reached
	c.kill(worker)
	release()
	c.dev("start", worker, "--dir", c.dir)
	return done()
}

// A worker that is killed in the middle of that copies on in its next life.
func TestDeltaSurvivesAKilledWorker(t *testing.T) {
	const capacity = 570 << 20
	var size int64
	c := up(t, 1, fmt.Sprint(capacity), func(root string) { size = makeFiles(t, root, 4000, 200<<10, 0, 0) })
	c.add()
	c.ready(c.certificate(c.must("preload", "data", "--wait", "-o", "json")), size)
	changed := c.changeByPut(rand.New(rand.NewPCG(4, 4)))
	c.must("dataset", "sync", "data")
	c.proxy.Reset()
	cert := c.killInTheMiddle("worker-1", changed/2)
	t.Logf("%d of %d bytes changed, the S3 side sent %d", changed, size, c.proxy.Bytes())
	if cert.State != api.CertificateReady || cert.Generation != 2 || c.proxy.Bytes() > changed*11/10+onTheWay {
		t.Errorf("%d bytes changed, the S3 side sent %d: %+v", changed, c.proxy.Bytes(), cert)
	}
	c.settled()
	if v := c.certificate(c.must("verify", "data", "--deep", "-o", "json")); v.State != api.CertificateReady {
		t.Errorf("verify: %+v", v)
	}
	c.sameEverywhere(t, 1, capacity)
}

// The third generation in the same space, where an old shard may be of either of
// two generations and both workers have read all of the second through their
// mounts, so that what is free is full of copies. One of them is killed in the
// middle and comes back. The UFS sends what changed, what was under way to the
// one that died, and at most one old shard whose last copy went meanwhile; nothing
// stays promised, and what is used is what shards take.
func TestDeltaThirdGenerationSurvivesAKill(t *testing.T) {
	const capacity = 650 << 20
	var size int64
	c := up(t, 2, fmt.Sprint(capacity), func(root string) { size = makeFiles(t, root, 4000, 500<<10, 0, 0) })
	c.add()
	c.ready(c.certificate(c.must("preload", "data", "--wait", "-o", "json")), size)
	generations := []stoker.ID{c.show("data").Manifest}
	r := rand.New(rand.NewPCG(5, 5))
	next := func(n int) (changed int64) {
		changed = c.changeByPut(r)
		d := c.detail("dataset", "sync", "data")
		if d.Unchanged || d.Generation != n {
			t.Fatalf("after the changes: %+v", d)
		}
		generations = append(generations, d.Manifest)
		c.proxy.Reset()
		return changed
	}
	changed := next(2)
	if cert := c.certificate(c.must("preload", "data", "--wait", "-o", "json")); cert.State != api.CertificateReady || c.proxy.Bytes() > changed*11/10 {
		t.Fatalf("%d bytes changed, the S3 side sent %d: %+v", changed, c.proxy.Bytes(), cert)
	}
	c.settled()
	c.sameEverywhere(t, 2, capacity)

	changed = next(3)
	cert := c.killInTheMiddle("worker-2", changed/2)
	t.Logf("%d of %d bytes changed, the S3 side sent %d", changed, size, c.proxy.Bytes())
	if cert.State != api.CertificateReady || cert.Generation != 3 || len(cert.Failed) != 0 || c.proxy.Bytes() > changed*11/10+onTheWay+stoker.ExtentBytes {
		t.Errorf("%d bytes changed, the S3 side sent %d: %+v", changed, c.proxy.Bytes(), cert)
	}
	sent := c.proxy.Bytes()
	c.settled()
	c.usedByShards(generations)
	if v := c.certificate(c.must("verify", "data", "--deep", "-o", "json")); v.State != api.CertificateReady {
		t.Errorf("verify: %+v", v)
	}
	c.sameEverywhere(t, 2, capacity)
	if got := c.proxy.Bytes(); got != sent {
		t.Errorf("reading the third generation fetched %d bytes more", got-sent)
	}
	c.settled()
	c.usedByShards(generations)
}

// onTheWay is what is sent to a worker that dies and never arrives: one object for
// each stream, and what is in buffers.
const onTheWay = 4 << 20

// documents is more than a worker's documents take: a page for each.
const documents = 128 << 10

// usedByShards checks that each worker uses what its shards and documents take, that
// each shard is of a generation, and that all of the last one are there.
func (c *cluster) usedByShards(generations []stoker.ID) {
	c.t.Helper()
	st, err := store.Open(store.Options{Dir: filepath.Join(c.t.TempDir(), "cache"), CapacityBytes: 1 << 20})
	if err != nil {
		c.t.Fatal(err)
	}
	defer st.Close()
	charge, last := map[string]int64{}, map[string]bool{}
	for i, id := range generations {
		m, err := manifest.Open(filepath.Join(c.dir, "store", "manifests", id.String()))
		if err != nil {
			c.t.Fatal(err)
		}
		for n := range uint32(m.Shards()) {
			d := m.Shard(n)
			charge[d.ID.String()] = st.ChargeBytes(d.Bytes, int(d.Blocks))
			last[d.ID.String()] = i == len(generations)-1
		}
		if err := m.Close(); err != nil {
			c.t.Fatal(err)
		}
	}
	for _, w := range c.workers() {
		files, err := filepath.Glob(filepath.Join(filepath.Dir(w.Socket), "cache", "shards", "*", "*.shard"))
		if err != nil || len(files) == 0 {
			c.t.Fatal(files, err)
		}
		var sum int64
		for _, file := range files {
			id := strings.TrimSuffix(filepath.Base(file), ".shard")
			if charge[id] == 0 {
				c.t.Errorf("%s is of no generation", file)
			}
			sum += charge[id]
			delete(last, id)
		}
		sum += st.Usage().UsedBytes // of an empty one
		if w.UsedBytes < sum || w.UsedBytes > sum+documents || w.ReservedBytes != 0 {
			c.t.Errorf("worker %s uses %d bytes and promised %d, its shards take %d", w.ID, w.UsedBytes, w.ReservedBytes, sum)
		}
	}
	for id, of := range last {
		if of {
			c.t.Errorf("shard %s of the last generation is nowhere", id)
		}
	}
}

// sameEverywhere compares what each worker's mount shows with the source, and
// what its cache folder takes with its limit.
func (c *cluster) sameEverywhere(t *testing.T, workers int, capacity int64) {
	t.Helper()
	for w := 1; w <= workers; w++ {
		dir := t.TempDir()
		if r := c.stokerAt(w, "mount", "data", dir); r.code != 0 {
			t.Fatalf("mount on worker %d: exit %d %s", w, r.code, r.stderr)
		}
		sameTree(t, filepath.Join(c.root, "data"), dir)
		if r := c.stokerAt(w, "umount", dir); r.code != 0 {
			t.Fatalf("umount on worker %d: exit %d %s", w, r.code, r.stderr)
		}
	}
	folders, err := filepath.Glob(filepath.Join(c.dir, "worker-*", "cache"))
	if err != nil || len(folders) == 0 {
		t.Fatal(folders, err)
	}
	for _, folder := range folders {
		if used := allocated(t, folder); used > capacity {
			t.Errorf("%s takes %d bytes, its limit is %d", folder, used, capacity)
		}
	}
}
