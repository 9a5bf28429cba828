package manifest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
	"stoker.dev/ufs/folder"
)

// shared is a manifest store whose reads of objects are counted, and can be held up.
type shared struct {
	ufs.Objects
	gets atomic.Int32
	hold chan struct{} // not nil: Get waits until it is closed
}

func (s *shared) Get(ctx context.Context, name string) ([]byte, string, error) {
	if name == unnamedName { // asked for by each put
		return s.Objects.Get(ctx, name)
	}
	s.gets.Add(1)
	if s.hold != nil {
		select {
		case <-s.hold:
		case <-ctx.Done():
			return nil, "", ctx.Err()
		}
	}
	return s.Objects.Get(ctx, name)
}

// newStore makes a daemon's store over a folder that others may share.
func newStore(t testing.TB) (*Store, *shared) {
	t.Helper()
	objects, err := folder.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := &shared{Objects: objects}
	return NewStore(s, t.TempDir()), s
}

func load(t testing.TB, s *Store, id stoker.ID) *Manifest {
	t.Helper()
	m, err := s.Load(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// stored freezes a dataset into a store.
func stored(t testing.TB, s *Store) stoker.ID {
	t.Helper()
	b := build(t, some().options(t))
	if err := s.Put(context.Background(), b); err != nil {
		t.Fatal(err)
	}
	removed(t, filepath.Dir(b.Path))
	return b.ID
}

func TestPutAndLoad(t *testing.T) {
	s, objects := newStore(t)
	id := stored(t, s)
	if again := stored(t, s); again != id { // put again is the same
		t.Fatalf("ids %v and %v", id, again)
	}
	a, b := load(t, s, id), load(t, s, id)
	if a != b || a.ID() != id || objects.gets.Load() != 1 {
		t.Errorf("two loads: one mapping %v, %d reads of the store", a == b, objects.gets.Load())
	}
	a.Close()
	if _, ok := b.LookupPath("train/1/f1"); !ok {
		t.Error("the first Close took the manifest away from the second user")
	}
	b.Close()
	if len(s.open) != 0 {
		t.Error("a closed manifest is still kept open")
	}

	// The local copy serves when the store is gone, and in the next life.
	if err := objects.Delete(context.Background(), manifestName(id)); err != nil {
		t.Fatal(err)
	}
	load(t, s, id).Close()
	load(t, NewStore(objects, s.dir), id).Close()
	if objects.gets.Load() != 1 {
		t.Errorf("%d reads of the store", objects.gets.Load())
	}
	_, err := s.Load(context.Background(), stoker.ID{1})
	wantKind(t, err, stoker.KindNotExist)
}

func TestDamagedLocalCopyIsFetchedAgain(t *testing.T) {
	for name, harm := range map[string]func(path string) error{
		"cut":              func(path string) error { return os.Truncate(path, 1000) },
		"empty":            func(path string) error { return os.Truncate(path, 0) },
		"another manifest": func(path string) error { return os.WriteFile(path, otherManifest(t), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := newStore(t)
			id := stored(t, s)
			load(t, s, id).Close()
			if err := harm(filepath.Join(s.dir, id.String())); err != nil {
				t.Fatal(err)
			}
			m := load(t, s, id)
			defer m.Close()
			if m.ID() != id || m.Rows() < 50 {
				t.Errorf("manifest %s of %d rows", m.ID().Short(), m.Rows())
			}
		})
	}
}

func otherManifest(t testing.TB) []byte {
	t.Helper()
	s := newSource()
	s.add("x", 1)
	body, err := os.ReadFile(build(t, s.options(t)).Path)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// What the store gives must have the hash that was asked for.
func TestWrongContentIsRefused(t *testing.T) {
	s, objects := newStore(t)
	ctx := context.Background()
	id := stored(t, s)
	good, _, err := objects.Get(ctx, manifestName(id))
	if err != nil {
		t.Fatal(err)
	}
	late := append([]byte{}, good...)
	late[len(late)-100] ^= 1
	for name, body := range map[string][]byte{"another manifest": otherManifest(t), "a byte flipped": late, "cut": good[:len(good)-1], "nothing": nil} {
		t.Run(name, func(t *testing.T) {
			if err := objects.Delete(ctx, manifestName(id)); err != nil {
				t.Fatal(err)
			}
			if _, err := objects.PutIfAbsent(ctx, manifestName(id), body); err != nil {
				t.Fatal(err)
			}
			_, err = s.Load(ctx, id)
			wantKind(t, err, stoker.KindCorrupt)
			removed(t, s.dir)
		})
	}
	// A load that failed says nothing of the next.
	if err := objects.Delete(ctx, manifestName(id)); err != nil {
		t.Fatal(err)
	}
	if _, err := objects.PutIfAbsent(ctx, manifestName(id), good); err != nil {
		t.Fatal(err)
	}
	load(t, s, id).Close()
}

func TestLoadsAmongCloses(t *testing.T) {
	s, objects := newStore(t)
	id := stored(t, s)
	var users sync.WaitGroup
	for range 8 {
		users.Go(func() {
			for range 200 {
				m, err := s.Load(context.Background(), id)
				if err != nil {
					t.Error(err)
					return
				}
				if row, ok := m.LookupPath("train/1/f1"); !ok || m.Entry(row).Bytes != 1000 {
					t.Error("wrong answer")
				}
				m.Close()
			}
		})
	}
	users.Wait()
	if objects.gets.Load() != 1 || len(s.open) != 0 || len(s.loading) != 0 {
		t.Errorf("%d reads of the store, %d open, %d loading", objects.gets.Load(), len(s.open), len(s.loading))
	}
}

// A manifest that its last user is just giving back is not handed out: its
// memory goes away at any moment.
func TestLoadDuringTheLastClose(t *testing.T) {
	s, _ := newStore(t)
	id := stored(t, s)
	old := load(t, s, id)
	old.users.Store(0) // as in Close, before it takes the store's lock
	m := load(t, s, id)
	defer m.Close()
	if m == old {
		t.Fatal("a manifest without a user was handed out")
	}
	old.users.Store(1)
	old.Close()
	if again := load(t, s, id); again != m {
		t.Error("the old one took the new one out of the store")
	} else {
		again.Close()
	}
}

// Who gives up waiting for another's load does so at once, and harms nobody;
// when the loader gives up, one of those who wait goes on.
func TestGivingUpALoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, objects := newStore(t)
		id := stored(t, s)
		objects.hold = make(chan struct{})
		start := func() (result chan error, giveUp context.CancelFunc) {
			ctx, cancel := context.WithCancel(t.Context())
			result = make(chan error, 1)
			go func() {
				m, err := s.Load(ctx, id)
				if err == nil {
					m.Close()
				}
				result <- err
			}()
			synctest.Wait()
			return result, cancel
		}
		loader, cancelLoader := start()
		waiting, cancelWaiting := start()
		defer cancelWaiting()
		impatient, cancelImpatient := start()
		if n := objects.gets.Load(); n != 1 {
			t.Errorf("three loads read the store %d times", n)
		}
		cancelImpatient()
		if err := <-impatient; !errors.Is(err, context.Canceled) {
			t.Errorf("impatient: %v", err)
		}
		cancelLoader()
		if err := <-loader; !errors.Is(err, context.Canceled) {
			t.Errorf("loader: %v", err)
		}
		close(objects.hold)
		if err := <-waiting; err != nil {
			t.Errorf("waiting: %v", err)
		}
	})
}

func TestBlobs(t *testing.T) {
	s, objects := newStore(t)
	ctx := context.Background()
	id, err := s.PutBlob(ctx, "plans", []byte("a plan"))
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.PutBlob(ctx, "plans", []byte("a plan")); err != nil || again != id {
		t.Errorf("put again: %v %v", again, err)
	}
	if body, err := s.GetBlob(ctx, "plans", id); err != nil || string(body) != "a plan" {
		t.Errorf("got %q %v", body, err)
	}
	_, err = s.GetBlob(ctx, "certificates", id)
	wantKind(t, err, stoker.KindNotExist)
	if _, err := objects.PutIfAbsent(ctx, "plans/"+stoker.ID{1}.String(), []byte("another plan")); err != nil {
		t.Fatal(err)
	}
	_, err = s.GetBlob(ctx, "plans", stoker.ID{1})
	wantKind(t, err, stoker.KindCorrupt)
}

func TestRegistry(t *testing.T) {
	s, _ := newStore(t)
	ctx := context.Background()
	d := &Dataset{Name: "img.net-1_k", Owner: "ann", Roots: []Root{{ufs.Location{URI: "s3://b/p"}, "x"}}, MaxAge: time.Hour}
	if err := s.CreateDataset(ctx, d); err != nil {
		t.Fatal(err)
	}
	wantKind(t, s.CreateDataset(ctx, &Dataset{Name: d.Name, Owner: "eve"}), stoker.KindHeld)

	got, tag, err := s.Dataset(ctx, d.Name)
	if err != nil || got.Owner != "ann" || got.MaxAge != time.Hour || len(got.Roots) != 1 || got.Roots[0] != d.Roots[0] || got.Current().Number != 0 {
		t.Fatalf("%+v %v", got, err)
	}
	got.Generations = append(got.Generations, Generation{Number: 1, Manifest: stoker.ID{7}, Objects: 5}, Generation{Number: 2})
	if err := s.UpdateDataset(ctx, got, tag); err != nil {
		t.Fatal(err)
	}
	got.Owner = "bob"
	wantKind(t, s.UpdateDataset(ctx, got, tag), stoker.KindHeld) // the tag is of what was
	now, _, err := s.Dataset(ctx, d.Name)
	if err != nil || now.Owner != "ann" || now.Current().Number != 2 {
		t.Errorf("%+v %v", now, err)
	}
	if g, ok := now.Find(1); !ok || g.Manifest != (stoker.ID{7}) || g.Objects != 5 {
		t.Errorf("generation 1: %+v %v", g, ok)
	}
	if _, ok := now.Find(3); ok {
		t.Error("found a generation that never was")
	}

	if err := s.CreateDataset(ctx, &Dataset{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	if all, err := s.Datasets(ctx); err != nil || len(all) != 2 || all[0].Name != "a" || all[1].Name != d.Name {
		t.Errorf("%+v %v", all, err)
	}
	for range 2 {
		if err := s.RemoveDataset(ctx, d.Name); err != nil {
			t.Fatal(err)
		}
	}
	_, _, err = s.Dataset(ctx, d.Name)
	wantKind(t, err, stoker.KindNotExist)
	wantKind(t, s.UpdateDataset(ctx, got, tag), stoker.KindNotExist)
}

// Names become parts of object names: nothing odd gets that far.
func TestDatasetNames(t *testing.T) {
	none := NewStore(nil, "") // a call that reaches the store panics
	ctx := context.Background()
	for _, name := range []string{"", ".", "..", ".hidden", "-x", "../x", "a/b", "A", "ä", "a b", "a\n", "a\x00", strings.Repeat("a", 64), "a%2f"} {
		wantKind(t, ValidateName(name), stoker.KindInvalid)
		wantKind(t, none.CreateDataset(ctx, &Dataset{Name: name}), stoker.KindInvalid)
		wantKind(t, none.UpdateDataset(ctx, &Dataset{Name: name}, "x"), stoker.KindInvalid)
		wantKind(t, none.RemoveDataset(ctx, name), stoker.KindInvalid)
		_, _, err := none.Dataset(ctx, name)
		wantKind(t, err, stoker.KindInvalid)
	}
	for _, name := range []string{"a", "0", "imagenet-1k", "a.b_c", strings.Repeat("a", 63)} {
		if err := ValidateName(name); err != nil {
			t.Error(err)
		}
	}
}

// A registry entry of another format is refused by name, and not replaced.
func TestUnknownRegistryFormatIsRefused(t *testing.T) {
	s, objects := newStore(t)
	d := &Dataset{Name: "images"}
	if err := s.CreateDataset(t.Context(), d); err != nil || d.Format != 1 {
		t.Fatalf("%v, format %d", err, d.Format)
	}
	body, tag, err := objects.Get(t.Context(), registryName(d.Name))
	if err != nil || !strings.Contains(string(body), `"format": 1`) {
		t.Fatalf("%s, %v", body, err)
	}
	if _, err := objects.ReplaceIf(t.Context(), registryName(d.Name), []byte(strings.Replace(string(body), `"format": 1`, `"format": 3`, 1)), tag); err != nil {
		t.Fatal(err)
	}
	_, _, err = s.Dataset(t.Context(), d.Name)
	wantKind(t, err, stoker.KindInvalid)
	_, err = s.Datasets(t.Context())
	wantKind(t, err, stoker.KindInvalid)
	if !strings.Contains(err.Error(), "has format 3, this program knows 2") {
		t.Error(err)
	}
}
