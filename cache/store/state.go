package store

import (
	"encoding/json"
	"errors"
	"io/fs"
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

// promise is space promised under a name.
type promise struct {
	Bytes   int64 `json:"bytes"`   // what is left
	Largest int64 `json:"largest"` // most that one of its shards is charged with
}

// UnmarshalJSON reads also the plain number of bytes that was written before a
// store had several folders.
func (p *promise) UnmarshalJSON(b []byte) error {
	if json.Unmarshal(b, &p.Bytes) == nil {
		p.Largest = largestShard
		return nil
	}
	type plain promise
	return json.Unmarshal(b, (*plain)(p))
}

// largestShard is more than any shard is charged with.
const largestShard = 130 << 20

// Reserve promises bytes under a name, durably, before it returns, for shards
// of any size. Asking for the same name again sets it to the new size. NoSpace
// names the numbers.
func (s *Store) Reserve(name string, bytes int64) error {
	return s.ReserveFor(name, bytes, largestShard)
}

// ReserveFor is Reserve for shards of which none is charged with more than
// largest: with several folders, less is then set aside.
func (s *Store) ReserveFor(name string, bytes, largest int64) error {
	return s.ReserveAgainst(name, bytes, largest, 0)
}

// ReserveAgainst is ReserveFor for a caller who will remove shards that now take
// pledged bytes, as the promise is drawn: until then nobody else can take space,
// and Create says NoSpace where too little has been removed yet.
func (s *Store) ReserveAgainst(name string, bytes, largest, pledged int64) error {
	if bytes < 0 || largest < 0 || pledged < 0 || name == "" {
		return stoker.Errorf(stoker.KindInvalid, "store.reserve", name, "%d bytes against %d", bytes, pledged)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	had, known := s.reserved[name]
	delete(s.reserved, name)
	free := s.freeLocked(largest) + pledged
	s.reserved[name] = promise{bytes, largest}
	err := error(nil)
	if bytes > max(0, free) {
		err = stoker.Errorf(stoker.KindNoSpace, "store.reserve", name, "needs %d bytes, %d free", bytes, max(0, free))
	} else {
		err = s.saveReservations()
	}
	if err == nil && bytes < had.Bytes {
		s.freedLocked()
	}
	if err != nil {
		if delete(s.reserved, name); known {
			s.reserved[name] = had
		}
	}
	return err
}

// Unreserve gives back what is left of a promise; one that is not there is fine.
func (s *Store) Unreserve(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.reserved[name]; !known {
		return nil
	}
	delete(s.reserved, name)
	s.freedLocked()
	return s.saveReservations()
}

// UnreserveAll gives back the promises whose names match.
func (s *Store) UnreserveAll(match func(name string) bool) error {
	for name := range s.Reservations() {
		if match(name) {
			if err := s.Unreserve(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// Reservations returns what is left of each promise, in bytes.
func (s *Store) Reservations() map[string]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]int64, len(s.reserved))
	for name, p := range s.reserved {
		out[name] = p.Bytes
	}
	return out
}

func (s *Store) saveReservations() error {
	var all any = s.reserved
	if len(s.folders) == 1 { // as releases that know but one folder read it
		left := map[string]int64{}
		for name, p := range s.reserved {
			left[name] = p.Bytes
		}
		all = left
	}
	body, err := json.Marshal(all)
	if err != nil {
		return err
	}
	return s.everywhere(func(f *folder) error {
		return s.disk.writeAtomic(filepath.Join(f.dir, reservationsFile), body)
	})
}

func (s *Store) recoverReservations(from *folder) error {
	s.reserved = map[string]promise{}
	path := filepath.Join(from.dir, reservationsFile)
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
		s.reserved = map[string]promise{}
	}
	for name, p := range s.reserved {
		if p.Bytes < 0 {
			delete(s.reserved, name)
		}
	}
	return nil
}

// stateName returns a document's name in a folder.
func stateName(name string) (string, error) {
	if name == "" || len(name) > 200 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" || name[0] == '.' {
		return "", stoker.Errorf(stoker.KindInvalid, "store.state", name, "not a document's name")
	}
	return filepath.Join("state", name+".json"), nil
}

// PutState writes a small document: durable and whole when it returns. It
// counts against the capacity, but is never refused for want of it: what a
// worker knows about its data may not depend on how full it is.
func (s *Store) PutState(name string, body []byte) error {
	return s.putState(name, body, s.disk.writeAtomic)
}

// PutNote is PutState for what is written again and again, and may be an older one,
// or damaged, after power loss: it waits for no disk.
func (s *Store) PutNote(name string, body []byte) error {
	return s.putState(name, body, s.disk.replace)
}

func (s *Store) putState(name string, body []byte, write func(path string, body []byte) error) error {
	path, err := stateName(name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	err = s.everywhere(func(f *folder) error { return write(filepath.Join(f.dir, path), body) })
	if err != nil {
		return err
	}
	charge := roundUp(int64(len(body))) + stateOverhead
	s.docs += charge - s.states[name]
	s.states[name] = charge
	return nil
}

// GetState reads a document; NotExist if there is none.
func (s *Store) GetState(name string) ([]byte, error) {
	path, err := stateName(name)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	from := s.newestLocked()
	if from == nil {
		from = s.folders[0]
	}
	body, err := os.ReadFile(filepath.Join(from.dir, path))
	if err != nil {
		return nil, failed("store.state", name, err)
	}
	return body, nil
}

// DeleteState removes a document; one that is not there is fine.
func (s *Store) DeleteState(name string) error {
	path, err := stateName(name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.states[name]; !known {
		return nil
	}
	err = s.everywhere(func(f *folder) error {
		err := s.disk.remove(filepath.Join(f.dir, path))
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	})
	if err != nil {
		return err
	}
	s.docs -= s.states[name]
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

func (s *Store) recoverStates(from *folder) error {
	s.states, s.docs = map[string]int64{}, 0
	dir := filepath.Join(from.dir, "state")
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
		s.docs += s.states[name]
	}
	return nil
}
