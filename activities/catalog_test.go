package activities

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/ufs"
	"stoker.dev/ufs/folder"
)

// wide is a store whose keys are numbers, in pages of 4,000, with something
// that happens before a page is sent.
type wide struct {
	listed
	objects int

	mu     sync.Mutex
	pages  int
	before func(page int) error
}

func (w *wide) List(_ context.Context, o ufs.ListOptions) (ufs.Page, error) {
	w.mu.Lock()
	w.pages++
	page := w.pages
	w.mu.Unlock()
	if err := w.before(page); err != nil { // others go on meanwhile
		return ufs.Page{}, err
	}
	from := sort.Search(w.objects, func(i int) bool { return fmt.Sprintf("%08d", i) > o.StartAfter })
	if o.Token != "" {
		from, _ = strconv.Atoi(o.Token)
	}
	var p ufs.Page
	for i := from; i < min(from+4_000, w.objects); i++ {
		p.Objects = append(p.Objects, ufs.Object{Key: fmt.Sprintf("%08d", i), Version: ufs.Version{Tag: `"1"`, Bytes: 1}})
	}
	if from+4_000 < w.objects {
		p.Next = strconv.Itoa(from + 4_000)
	}
	return p, nil
}

// watched tells when some ten pages of a journal are written: in one batch, or in
// several where listing takes longer than the time for one.
type watched struct {
	ufs.Objects
	wrote chan struct{}
	mu    sync.Mutex
	bytes int // +checklocks:mu — of the journal
}

const tenPages = 6_000 // bytes

func (w *watched) PutIfAbsent(ctx context.Context, name string, body []byte) (string, error) {
	tag, err := w.Objects.PutIfAbsent(ctx, name, body)
	if strings.HasPrefix(name, "listings/") {
		w.mu.Lock()
		defer w.mu.Unlock()
		before := w.bytes
		if w.bytes += len(body); before < tenPages && w.bytes >= tenPages {
			close(w.wrote)
		}
	}
	return tag, err
}

// freezeOn runs the activity as Temporal does on a controller that lives as
// long as ctx.
func freezeOn(ctx context.Context, a *Activities) (f Frozen, err error) {
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(log.NewStructuredLogger(slog.New(slog.DiscardHandler)))
	env := suite.NewTestActivityEnvironment()
	env.SetWorkerOptions(worker.Options{BackgroundActivityContext: ctx})
	env.RegisterActivity(a.Freeze)
	v, err := env.ExecuteActivity(a.Freeze, FreezeInput{Roots: someRoots})
	if err == nil {
		err = v.Get(&f)
	}
	return f, FromTemporal("", "", err)
}

// A listing whose controller dies goes on at another one where it was, with the
// same result; the journal is gone when the manifest is stored, and when no
// other try comes.
func TestListingSurvivesItsController(t *testing.T) {
	in, err := folder.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	objects := &watched{Objects: in, wrote: make(chan struct{})}
	w := &wide{objects: 200_000}
	controller := func() *Activities {
		return New(Options{Store: manifest.NewStore(objects, t.TempDir()), TempDir: t.TempDir(),
			Open: func(context.Context, ufs.Location) (ufs.FS, string, error) { return w, "", nil }})
	}
	journal := func() []string {
		names, err := objects.List(t.Context(), "listings/")
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	var pages [3]int // asked for in all, when the first died, by one alone
	ctx, die := context.WithCancel(t.Context())
	w.before = func(page int) error {
		if page == 18 {
			<-objects.wrote
			die()
		}
		return ctx.Err()
	}
	if _, err := freezeOn(ctx, controller()); err == nil {
		t.Fatal("it did not die")
	}
	if len(journal()) == 0 {
		t.Fatal("there is no journal")
	}
	pages[1] = w.pages
	w.before = func(int) error { return nil }
	got, err := freezeOn(t.Context(), controller())
	if err != nil || got.Objects != 200_000 {
		t.Fatal(got, err)
	}
	pages[0] = w.pages
	want, err := freezeOn(t.Context(), controller())
	if err != nil || want.Manifest != got.Manifest {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	pages[2] = w.pages - pages[0]
	if again := pages[0] - pages[1]; again > pages[2]-5 { // ten pages are in the journal
		t.Errorf("%d pages after %d of %d", again, pages[1], pages[2])
	}
	if names := journal(); len(names) > 0 {
		t.Errorf("left are %v", names)
	}
	denied := stoker.Errorf(stoker.KindDenied, "list", "", "no longer")
	w.pages = 0
	w.before = func(page int) error {
		if page > 18 {
			return denied
		}
		return nil
	}
	if _, err := freezeOn(t.Context(), controller()); stoker.KindOf(err) != stoker.KindDenied {
		t.Error(err)
	}
	if names := journal(); len(names) > 0 {
		t.Errorf("no other try comes, and left are %v", names)
	}
}

// fullStore takes no manifests.
type fullStore struct{ ufs.Objects }

func (f fullStore) PutIfAbsent(ctx context.Context, name string, body []byte) (string, error) {
	if strings.HasPrefix(name, "manifests/") {
		return "", stoker.Errorf(stoker.KindNoSpace, "store.put", name, "no space left")
	}
	return f.Objects.PutIfAbsent(ctx, name, body)
}

// A listing that comes to nothing leaves no file where it was built: it is tried
// again and again.
func TestFailedFreezeLeavesNoFile(t *testing.T) {
	objects, err := folder.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for kind, files := range map[stoker.Kind]listed{stoker.KindNotExist: {}, stoker.KindNoSpace: {"a": 1, "b": 2}} {
		dir := t.TempDir()
		a := New(Options{Store: manifest.NewStore(fullStore{objects}, t.TempDir()), TempDir: dir,
			Open: func(context.Context, ufs.Location) (ufs.FS, string, error) { return files, "", nil }})
		if _, err := freezeOn(t.Context(), a); stoker.KindOf(err) != kind || err == nil {
			t.Errorf("%v, want %v", err, kind)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("%v: %v is left, %v", kind, left, err)
		}
	}
}
