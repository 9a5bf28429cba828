package store

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"stoker.dev"
)

const (
	reservationsFile = "reservations.json"
	tempPrefix       = ".new-" // of a write that is under way
)

// Reserve promises bytes under a name, durably, before it returns. Asking for
// the same name again sets it to the new size. NoSpace names the numbers.
func (s *Store) Reserve(name string, bytes int64) error {
	if bytes < 0 || name == "" {
		return stoker.Errorf(stoker.KindInvalid, "store.reserve", name, "%d bytes", bytes)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	had, known := s.reserved[name]
	free := s.capacity - s.used - s.reservedLocked() + had
	if bytes > free {
		return stoker.Errorf(stoker.KindNoSpace, "store.reserve", name, "needs %d bytes, %d free", bytes, max(0, free))
	}
	s.reserved[name] = bytes
	if err := s.saveReservations(); err != nil {
		if delete(s.reserved, name); known {
			s.reserved[name] = had
		}
		return err
	}
	return nil
}

// Unreserve gives back what is left of a promise; one that is not there is fine.
func (s *Store) Unreserve(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.reserved[name]; !known {
		return nil
	}
	delete(s.reserved, name)
	return s.saveReservations()
}

// Reservations returns what is left of each promise, in bytes.
func (s *Store) Reservations() map[string]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.reserved)
}

func (s *Store) saveReservations() error {
	body, err := json.Marshal(s.reserved)
	if err != nil {
		return err
	}
	if err := s.disk.writeAtomic(filepath.Join(s.dir, reservationsFile), body); err != nil {
		return failed("store.reserve", s.dir, err)
	}
	return nil
}

func (s *Store) recoverReservations() error {
	path := filepath.Join(s.dir, reservationsFile)
	body, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return failed("store.open", path, err)
	}
	if err := json.Unmarshal(body, &s.reserved); err != nil {
		return stoker.Errorf(stoker.KindCorrupt, "store.open", path, "%w", err)
	}
	if s.reserved == nil { // the JSON was null
		s.reserved = map[string]int64{}
	}
	for name, n := range s.reserved {
		if n < 0 {
			delete(s.reserved, name)
		}
	}
	return nil
}

func (s *Store) statePath(name string) (string, error) {
	if name == "" || len(name) > 200 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" || name[0] == '.' {
		return "", stoker.Errorf(stoker.KindInvalid, "store.state", name, "not a document's name")
	}
	return filepath.Join(s.dir, "state", name+".json"), nil
}

// PutState writes a small document: durable and whole when it returns. It
// counts against the capacity, but is never refused for want of it: what a
// worker knows about its data may not depend on how full it is.
func (s *Store) PutState(name string, body []byte) error {
	path, err := s.statePath(name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.disk.writeAtomic(path, body); err != nil {
		return failed("store.state", name, err)
	}
	charge := roundUp(int64(len(body))) + stateOverhead
	s.used += charge - s.states[name]
	s.states[name] = charge
	return nil
}

// GetState reads a document; NotExist if there is none.
func (s *Store) GetState(name string) ([]byte, error) {
	path, err := s.statePath(name)
	if err != nil {
		return nil, err
	}
	body, err := os.ReadFile(path)
	if err != nil {
		return nil, failed("store.state", name, err)
	}
	return body, nil
}

// DeleteState removes a document; one that is not there is fine.
func (s *Store) DeleteState(name string) error {
	path, err := s.statePath(name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.disk.remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return failed("store.state", name, err)
	}
	s.used -= s.states[name]
	delete(s.states, name)
	return nil
}

// ListState lists the documents whose names begin with prefix, sorted.
func (s *Store) ListState(prefix string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for name := range s.states {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

func (s *Store) recoverStates() error {
	dir := filepath.Join(s.dir, "state")
	files, err := os.ReadDir(dir)
	if err != nil {
		return failed("store.open", dir, err)
	}
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), ".json")
		fi, err := f.Info()
		if !ok || err != nil || !fi.Mode().IsRegular() {
			_ = s.disk.removeAll(filepath.Join(dir, f.Name())) // half of a write that a crash ended
			continue
		}
		s.states[name] = roundUp(fi.Size()) + stateOverhead
		s.used += s.states[name]
	}
	return nil
}
