package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"stoker.dev/internal/testenv"
)

// sent is what the S3 side has sent at one moment.
type sent struct {
	bytes  int64
	gets   int
	second int64 // of the requests: see secondRequests
}

func (c *cluster) sentSoFar() sent {
	c.t.Helper()
	return sent{c.proxy.Bytes(), len(c.proxy.Log()), c.secondRequests()}
}

// sentOnce checks that the S3 side has sent every byte of so many once since then. A
// worker may ask again for what is late: beside a slow request, in place of one that
// stands still, past an owner that does not answer. It counts these, and nothing else
// may be asked for twice; if it counts none, the bytes are as many as there are. There
// are no more than its budgets of hedges and retries have. No worker has died meanwhile.
func (c *cluster) sentOnce(then sent, size int64) {
	c.t.Helper()
	bytes, log := c.proxy.Bytes()-then.bytes, c.proxy.Log()[then.gets:]
	gets, twice := askedTwice(log, c.sizeOf)
	second := c.secondRequests() - then.second
	most := len(c.sockets())*(10+32) + len(log)*15/100 // guard's: in hand, and of the requests
	if bytes < size || bytes > size+twice || int64(gets) > second || gets > most {
		c.t.Errorf("the S3 side sent %d bytes for %d; %d of %d requests were for %d bytes that had been asked for, and the workers tell of %d second ones, of %d at most",
			bytes, size, gets, len(log), twice, second, most)
	}
}

// askedTwice returns how many of the requests were for bytes that earlier ones were
// for, and for how many such bytes.
func askedTwice(log []testenv.Get, sizeOf func(key string) int64) (gets int, bytes int64) {
	before := map[string][]testenv.Get{}
	for _, g := range log {
		if g.To < 0 {
			g.To = sizeOf(g.Key)
		}
		if again := fetchedAgain(before, []testenv.Get{g}); again > 0 {
			gets, bytes = gets+1, bytes+again
		}
		before[g.Key] = append(before[g.Key], g)
	}
	return gets, bytes
}

func (c *cluster) sizeOf(key string) int64 {
	c.t.Helper()
	fi, err := os.Stat(filepath.Join(c.root, key))
	if err != nil {
		c.t.Fatal(err)
	}
	return fi.Size()
}

// secondRequests is how many of their requests the workers say to have sent beside
// others, after others, or past an owner.
func (c *cluster) secondRequests() (n int64) {
	c.t.Helper()
	seen := 0
	for _, socket := range c.sockets() {
		page, err := metricsAt(socket)
		if err != nil {
			c.t.Fatalf("metrics at %s: %v", socket, err)
		}
		for line := range strings.Lines(page) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			switch name {
			case "stoker_ufs_hedges_total", "stoker_ufs_retries_total", "stoker_ufs_bypass_requests_total":
				v, err := strconv.ParseFloat(value, 64)
				if err != nil {
					c.t.Fatal(err)
				}
				n, seen = n+int64(v), seen+1
			}
		}
	}
	if seen == 0 || seen%3 != 0 {
		c.t.Fatalf("%d counters of second requests", seen)
	}
	return n
}

// metricsAt is the page of a worker's metrics.
func metricsAt(socket string) (string, error) {
	page, err := exec.Command("curl", "-sf", "--unix-socket", socket, "http://worker/metrics").Output()
	return string(page), err
}

// sockets are those of all workers: an index that was emptied may not know them yet.
func (c *cluster) sockets() []string {
	c.t.Helper()
	sockets, err := filepath.Glob(filepath.Join(c.dir, "worker-*", "worker.sock"))
	if err != nil {
		c.t.Fatal(err)
	}
	return sockets
}

// still waits until nothing comes any more, a second request that is of no use least
// of all, and returns how many bytes have come.
func (c *cluster) still() (bytes int64) {
	c.t.Helper()
	bytes = -1
	c.eventually("nothing comes any more", func() bool {
		before := bytes
		<-time.After(250 * time.Millisecond)
		bytes = c.proxy.Bytes()
		return bytes == before
	})
	return bytes
}

// What two requests are for, in part or whole, is found.
func TestAskedTwice(t *testing.T) {
	size := func(string) int64 { return 100 }
	log := []testenv.Get{{Key: "a", From: 0, To: 50}, {Key: "b", From: 0, To: 50}, {Key: "a", From: 50, To: -1}}
	if gets, bytes := askedTwice(log, size); gets != 0 || bytes != 0 {
		t.Errorf("each once: %d requests, %d bytes", gets, bytes)
	}
	log = append(log, testenv.Get{Key: "a", From: 40, To: 60}, testenv.Get{Key: "b", From: 10, To: -1})
	if gets, bytes := askedTwice(log, size); gets != 2 || bytes != 60 {
		t.Errorf("%d requests, %d bytes, want 2 and 60", gets, bytes)
	}
}
