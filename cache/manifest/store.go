package manifest

import (
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"stoker.dev"
	"stoker.dev/cache/listing"
	"stoker.dev/ufs"
)

// Store is the manifest store: manifests, plans and certificates by hash, and
// the registry of datasets, in a store of small objects that all daemons
// share; with verified local copies of the manifests in use. Its methods may
// be called concurrently.
type Store struct {
	objects ufs.Objects
	dir     string // local copies; the caller owns it

	mu      sync.Mutex
	open    map[stoker.ID]*Manifest     // +checklocks:mu
	loading map[stoker.ID]chan struct{} // +checklocks:mu — closed when the load has ended
}

// NewStore keeps local copies in dir, which must exist.
func NewStore(objects ufs.Objects, dir string) *Store {
	return &Store{objects: objects, dir: dir, open: map[stoker.ID]*Manifest{}, loading: map[stoker.ID]chan struct{}{}}
}

// Journal is the journal of the listing that a name stands for, kept in this
// store: any text that every try of this listing has, and no other listing.
func (s *Store) Journal(name string, o listing.JournalOptions) *listing.Journal {
	return listing.NewJournal(s.objects, name, o)
}

func manifestName(id stoker.ID) string { return NameOf(KindManifests, id) }

// Put stores a finished manifest and removes its file. One that is there
// already is the same. The file is mapped, not read into the heap.
func (s *Store) Put(ctx context.Context, b *Built) error {
	m, err := Open(b.Path)
	if err != nil {
		return err
	}
	if err := s.touch(ctx, manifestName(b.ID)); err != nil {
		_ = m.Close()
		return err
	}
	_, err = s.objects.PutIfAbsent(ctx, manifestName(b.ID), m.m)
	_ = m.Close() // it was only read
	if err != nil && stoker.KindOf(err) != stoker.KindHeld {
		return err
	}
	if err := os.Remove(b.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return stoker.Errorf(stoker.KindInternal, "manifest.put", b.Path, "%w", err)
	}
	return nil
}

// Load opens a manifest by its id. The first time it is fetched and verified;
// from then on the local copy serves. Loads of one id share one mapping. The
// caller closes the manifest.
func (s *Store) Load(ctx context.Context, id stoker.ID) (*Manifest, error) {
	for {
		s.mu.Lock()
		if m := s.open[id]; m != nil && m.retain() {
			s.mu.Unlock()
			return m, nil
		}
		wait := s.loading[id]
		if wait == nil {
			wait = make(chan struct{})
			s.loading[id] = wait
			s.mu.Unlock()
			return s.loadOne(ctx, id, wait)
		}
		s.mu.Unlock()
		select {
		case <-wait: // whoever loaded it has it open, or failed: look again
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *Store) loadOne(ctx context.Context, id stoker.ID, done chan struct{}) (*Manifest, error) {
	m, err := s.fetch(ctx, id)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.loading, id)
	close(done)
	if err != nil {
		return nil, err
	}
	m.release = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.open[id] == m {
			delete(s.open, id)
		}
	}
	s.open[id] = m
	return m, nil
}

// fetch opens the local copy, and makes it first if there is none. A copy gets
// its name, which is its id, only after it was verified in full and synced:
// what has a name was verified, in whatever life, and is opened without
// reading it again. The folder is the daemon's own, its files are never changed.
func (s *Store) fetch(ctx context.Context, id stoker.ID) (*Manifest, error) {
	path := filepath.Join(s.dir, id.String())
	if m, err := Open(path); err == nil && m.ID() == id {
		return m, nil
	} else if err == nil {
		_ = m.Close()
	}
	m, err := s.keep(ctx, s.dir, id)
	if k := stoker.KindOf(err); err == nil || k == stoker.KindNotExist || k == stoker.KindCorrupt || ctx.Err() != nil {
		return m, err
	}
	// The disk, perhaps: a copy without a name, elsewhere, will do.
	aside, derr := os.MkdirTemp("", "stoker-manifest-")
	if derr != nil {
		return nil, err
	}
	defer os.RemoveAll(aside)
	return s.keep(ctx, aside, id)
}

// keep makes a verified copy in dir and opens it.
func (s *Store) keep(ctx context.Context, dir string, id stoker.ID) (*Manifest, error) {
	path := filepath.Join(dir, id.String())
	f, err := os.CreateTemp(dir, ".new-")
	if err != nil {
		return nil, stoker.Errorf(stoker.KindInternal, "manifest.load", id.Short(), "%w", err)
	}
	err = s.copyTo(ctx, f, id)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = VerifyFile(f.Name(), id)
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		if e := (*stoker.Error)(nil); errors.As(err, &e) || ctx.Err() != nil {
			return nil, err
		}
		return nil, stoker.Errorf(stoker.KindInternal, "manifest.load", id.Short(), "%w", err)
	}
	return Open(path)
}

// copyTo writes the stored manifest to f, without holding it in memory where
// the store can.
func (s *Store) copyTo(ctx context.Context, f *os.File, id stoker.ID) error {
	if streams, ok := s.objects.(ufs.ObjectStreams); ok {
		return streams.GetTo(ctx, manifestName(id), f)
	}
	body, _, err := s.objects.Get(ctx, manifestName(id))
	if err == nil {
		_, err = f.Write(body)
	}
	return err
}

// PutBlob stores something small under its hash. kind is a word: plans,
// certificates.
func (s *Store) PutBlob(ctx context.Context, kind string, body []byte) (stoker.ID, error) {
	id := stoker.ID(sha256.Sum256(body))
	if err := s.touch(ctx, NameOf(kind, id)); err != nil {
		return id, err
	}
	_, err := s.objects.PutIfAbsent(ctx, NameOf(kind, id), body)
	if err != nil && stoker.KindOf(err) != stoker.KindHeld {
		return id, err
	}
	return id, nil
}

// GetBlob reads it back, verified.
func (s *Store) GetBlob(ctx context.Context, kind string, id stoker.ID) ([]byte, error) {
	body, _, err := s.objects.Get(ctx, kind+"/"+id.String())
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(body) != id {
		return nil, stoker.Errorf(stoker.KindCorrupt, "manifest.blob", kind+"/"+id.Short(), "the content has another hash")
	}
	return body, nil
}
