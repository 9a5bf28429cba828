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
	reached, release := c.proxy.Hold(changed / 2)
	defer release()
	done := c.preload()
	<-reached
	c.kill("worker-1")
	release()
	c.dev("start", "worker-1", "--dir", c.dir)
	cert := done()
	t.Logf("%d of %d bytes changed, the S3 side sent %d", changed, size, c.proxy.Bytes())
	onTheWay := int64(4 << 20) // one object for each stream, and what is in buffers
	if cert.State != api.CertificateReady || cert.Generation != 2 || c.proxy.Bytes() > changed*11/10+onTheWay {
		t.Errorf("%d bytes changed, the S3 side sent %d: %+v", changed, c.proxy.Bytes(), cert)
	}
	c.settled()
	if v := c.certificate(c.must("verify", "data", "--deep", "-o", "json")); v.State != api.CertificateReady {
		t.Errorf("verify: %+v", v)
	}
	c.sameEverywhere(t, 1, capacity)
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
