package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
	"stoker.dev/internal/testenv"
)

const (
	listedFiles = 24_000 // in one folder
	listedPages = listedFiles / 1000
	parallel    = 16 // requests that a listing has under way at most
)

// emptyFiles makes the files of a bucket whose listing has many pages.
func emptyFiles(t testing.TB, bucket string) {
	t.Helper()
	if err := os.MkdirAll(bucket, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range listedFiles - 1 {
		if err := os.WriteFile(filepath.Join(bucket, sampleName(i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(bucket, "train.idx"), []byte("index"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func sampleName(i int) string { return fmt.Sprintf("sample-%06d", i) }

// A controller is killed in mid-listing, of a new dataset and of a sync, and
// another one goes on from the journals: no page that was journalled is asked
// for again, those who wait for the registration and the sync follow them there
// to their ends, and their manifests are those of undisturbed listings.
func TestSecondControllerGoesOnWithListings(t *testing.T) { listingsGoOn(t, syscall.SIGKILL) }

// The same when it is stopped in order: nobody has given the listings up.
func TestStoppedControllerLeavesItsListings(t *testing.T) { listingsGoOn(t, syscall.SIGTERM) }

func listingsGoOn(t *testing.T, end syscall.Signal) {
	c := up(t, 1, "1GiB", func(data string) {
		emptyFiles(t, data)
		emptyFiles(t, filepath.Join(filepath.Dir(data), "more"))
	})
	c.add()
	if err := os.WriteFile(filepath.Join(c.root, "data", "train.idx"), []byte("another index"), 0o644); err != nil {
		t.Fatal(err)
	}
	address := c.movable()
	buckets := []string{"data", "more"}
	begun, killed := map[string]int{}, map[string]int{}
	reached, pass, release := map[string]<-chan struct{}{}, map[string]func(){}, map[string]func(){}
	for _, b := range buckets {
		begun[b] = len(c.proxy.Lists(b))
		reached[b], pass[b], release[b] = c.proxy.HoldLists(b, listedPages*6/10)
		defer release[b]()
	}
	sync, syncSaid := c.background("dataset", "sync", "data")
	add, addSaid := c.background("dataset", "add", "more", "s3://more", "--endpoint", c.proxy.URL(), "--path-style")
	for _, b := range buckets {
		<-reached[b]
	}
	c.eventually("all pages but those that are held have come", func() bool {
		for _, b := range buckets {
			if slices.ContainsFunc(c.proxy.Lists(b), func(l testenv.List) bool { return l.Answered && !l.Ended }) {
				return false
			}
		}
		return true
	})
	late := time.After(7 * time.Second)
	second := c.secondController()
	<-late // a page that comes so late is journalled at once, with those before it
	written := c.batches()
	for _, b := range buckets {
		pass[b]()
	}
	c.eventually("both listings are journalled", func() bool { return c.batches() == written+len(buckets) })
	c.end("controller", end)
	move(t, address, second)
	for _, b := range buckets {
		killed[b] = len(c.proxy.Lists(b))
		release[b]()
	}
	for said, err := range map[fmt.Stringer]error{syncSaid: sync.Wait(), addSaid: add.Wait()} {
		if err != nil || strings.Count(unhurried(said.String()), "waiting for it") != 1 {
			t.Errorf("a command that another controller answers: %v\n%s", err, said)
		}
		if end == syscall.SIGTERM && strings.Contains(said.String(), "no progress for 4") { // 40 s to 49: it is said every ten
			t.Errorf("the listing was not handed over:\n%s", said)
		}
	}
	if said := syncSaid.String(); !strings.Contains(said, "1 (13 B) changed") {
		t.Errorf("the sync does not say what has changed:\n%s", said)
	}
	got := c.datasets()
	if got["data"].Generation != 2 || got["more"].Generation != 1 {
		t.Errorf("%+v", got)
	}
	for _, b := range buckets {
		log := c.proxy.Lists(b)
		listedOnce(t, b, log[begun[b]:killed[b]], log[killed[b]:])
		c.must("dataset", "add", "undisturbed-"+b, "s3://"+b, "--endpoint", c.proxy.URL(), "--path-style")
	}
	all := c.datasets()
	for _, b := range buckets {
		want := all["undisturbed-"+b]
		if want.Manifest == (stoker.ID{}) || got[b].Manifest != want.Manifest || got[b].Objects != listedFiles {
			t.Errorf("%s has manifest %s with %d objects, an undisturbed listing %s with %d", b, got[b].Manifest, got[b].Objects, want.Manifest, want.Objects)
		}
	}
}

// listedOnce checks the requests of one listing before and after the death of
// its first controller. No page is answered twice. Beyond the pages needed there
// may be: for each range of keys, whether it was guessed or left by the journal,
// the part of a page in which it ends or finds nothing; and one look-up of the
// root's folders. What was in flight at the death never came to the store.
func listedOnce(t *testing.T, bucket string, before, after []testenv.List) {
	t.Helper()
	ranges, folders, answered, held := 0, 0, 0, 0
	pages := map[string]bool{} // by the key that they follow
	for i, l := range append(before[:len(before):len(before)], after...) {
		dead := i < len(before)
		if !dead && (!l.Answered || l.Folders || l.After+l.Token == "") {
			t.Errorf("%s: the second controller begins at the beginning, or gives a page up: %+v", bucket, l)
		}
		switch {
		case !l.Answered:
			held++
			continue
		case l.Folders:
			folders++
			continue
		case l.Token == "":
			ranges++
		}
		answered++
		if key := l.After + l.Token; len(key) == len(sampleName(0)) { // guesses are shorter
			if pages[key] {
				t.Errorf("%s: the page after %q was listed twice", bucket, key)
			}
			pages[key] = true
		}
	}
	t.Logf("%s: %d pages needed, %d answered, of %d ranges; %d look-ups of folders, %d in flight at the death", bucket, listedPages, answered, ranges, folders, held)
	if answered > listedPages+ranges || folders > 1 || held > parallel || len(pages) < listedPages/2 {
		t.Errorf("%s: %d pages of %d ranges were answered, %d are needed; %d look-ups of folders; %d were in flight at the death",
			bucket, answered, ranges, listedPages, folders, held)
	}
}

// batches counts those of all journals that are there for good: what is being
// written has another name.
func (c *cluster) batches() (n int) {
	names, _ := filepath.Glob(filepath.Join(c.dir, "store", "listings", "*", "*-*")) // the pattern is a good one
	for _, name := range names {
		if !strings.HasPrefix(filepath.Base(name), ".") {
			n++
		}
	}
	return n
}

func (c *cluster) datasets() map[string]api.DatasetInfo {
	c.t.Helper()
	var all []api.DatasetInfo
	if err := json.Unmarshal([]byte(c.must("dataset", "ls", "-o", "json")), &all); err != nil {
		c.t.Fatal(err)
	}
	out := map[string]api.DatasetInfo{}
	for _, d := range all {
		out[d.Name] = d
	}
	return out
}

// A user's Ctrl-C ends an add, also at the controller that was asked for it
// second; the name is free at once.
func TestInterruptedAddIsCancelled(t *testing.T) {
	c := up(t, 1, "256MiB", func(data string) { emptyFiles(t, data) })
	c.must("dataset", "add", "before", "s3://data", "--endpoint", c.proxy.URL(), "--path-style")
	address := c.movable()
	reached, _, release := c.proxy.HoldLists("data", listedPages*6/10)
	defer release()
	add, said := c.background("dataset", "add", "data", "s3://data", "--endpoint", c.proxy.URL(), "--path-style")
	<-reached
	second := c.secondController()
	c.end("controller", syscall.SIGTERM)
	listed := len(c.proxy.Lists("data"))
	move(t, address, second)
	c.eventually("the second controller lists, and is asked for it", func() bool {
		sockets, err := os.ReadFile("/proc/net/unix")
		return err == nil && strings.Count(string(sockets), " "+second) >= 2 && len(c.proxy.Lists("data")) > listed
	})
	if err := add.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := add.Wait(); add.ProcessState.ExitCode() != 130 || strings.Contains(said.String(), "no controller heard") {
		t.Errorf("%v: %s", err, said)
	}
	release()
	c.add() // and not the one that was given up
	if got := c.datasets(); len(got) != 2 || got["data"].Generation != 1 {
		t.Errorf("%+v", got)
	}
}

// movable gives the CLI an address that can be moved to another controller.
func (c *cluster) movable() (address string) {
	c.t.Helper()
	address = filepath.Join(c.t.TempDir(), "controller.sock")
	if err := os.Symlink(strings.TrimPrefix(c.getenv("STOKER_CONTROLLER"), "unix://"), address); err != nil {
		c.t.Fatal(err)
	}
	c.env = append(c.env, "STOKER_CONTROLLER=unix://"+address)
	return address
}

func move(t *testing.T, address, to string) {
	t.Helper()
	if err := errors.Join(os.Symlink(to, address+".new"), os.Rename(address+".new", address)); err != nil {
		t.Fatal(err)
	}
}
