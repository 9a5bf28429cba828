package store

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stoker.dev"
)

// Documents (the id, reservations, what is known of manifests, leases, views)
// stand in every folder in service, so that none that is lost takes any of
// them along. A write has succeeded when each folder has it, or those that
// have not are marked as stale: the others then get a higher generation. At
// the start the folder with the highest generation is right, and the others
// are made like it.

// membersFile says how new a folder's documents are, and where the folders of
// the store lay.
const membersFile = "members.json"

type members struct {
	Generation int64             `json:"generation"`
	Mounts     map[string]string `json:"mounts"` // by folder: where its file system is mounted
}

// takeAll takes each folder. Of several, one that is not there is left out.
func (s *Store) takeAll() error {
	mounts := map[string]string{}
	newest := int64(0)
	for _, f := range s.folders {
		if m, err := f.readMembers(); err == nil && m.Generation >= newest {
			newest, mounts = m.Generation, m.Mounts
		}
	}
	for i, f := range s.folders {
		var err error
		if was, now := mounts[f.dir], mountPoint(f.dir); len(s.folders) > 1 && len(was) > len(now) {
			err = stoker.Errorf(stoker.KindTransient, "store.open", f.dir, "nothing is mounted at %s: %w", was, unix.ENOENT)
		} else if err = s.distinct(f, s.folders[:i]); err == nil {
			err = f.take()
		}
		if err = s.survive(f, err); err != nil {
			return err
		}
	}
	return nil
}

// distinct refuses a folder that is, or lies in, one of the others, and names
// those that share a disk: its space is then promised twice.
func (s *Store) distinct(f *folder, others []*folder) error {
	mine, err := os.Stat(f.dir)
	for _, o := range others {
		if inside(o.dir, f.dir) || inside(f.dir, o.dir) {
			return stoker.Errorf(stoker.KindInvalid, "store.open", f.dir, "lies in another cache folder, or around it: %s", o.dir)
		}
		theirs, oerr := os.Stat(o.dir)
		if err != nil || oerr != nil {
			continue // made by take
		}
		if os.SameFile(mine, theirs) {
			return stoker.Errorf(stoker.KindInvalid, "store.open", f.dir, "is the same folder as %s: name it once", o.dir)
		}
		if a, b := device(f.dir), device(o.dir); a == b && a != 0 {
			s.log.Warn("two cache folders share a disk: see that it has the space of both", "folder", f.dir, "other", o.dir)
		}
	}
	return nil
}

// device returns the number of the file system of a folder; 0 = not known.
func device(dir string) uint64 {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return 0
	}
	return uint64(st.Dev)
}

// survive decides what an error of one folder means at the start: nil if the
// others can do without it.
func (s *Store) survive(f *folder, err error) error {
	if err == nil {
		return nil
	}
	if _, bad := judge(err); !bad {
		return err
	}
	f.outLocked(Failed, err.Error())
	f.stale = true
	for _, o := range s.folders {
		if !o.out() {
			return nil
		}
	}
	return err
}

// joinLocked finds the worker's id and the newest documents, and makes all
// folders alike.
func (s *Store) joinLocked() error {
	if err := s.readIDs(); err != nil {
		return err
	}
	if s.id == "" {
		s.id = stoker.NewToken()
	}
	var from *folder
	for {
		from = s.newestAtStart()
		err := s.recoverStates(from)
		if err == nil {
			err = s.recoverReservations(from)
		}
		if err == nil {
			break
		}
		if err = s.survive(from, err); err != nil {
			return err
		}
	}
	for _, f := range s.folders {
		if f.out() {
			continue
		}
		err := f.likeLocked(from)
		if err = s.survive(f, err); err != nil {
			return err
		}
	}
	return s.bumpLocked()
}

// readIDs checks that all folders belong to one worker.
func (s *Store) readIDs() error {
	var first *folder
	for _, f := range s.folders {
		if f.out() {
			continue
		}
		id, err := f.readID()
		if err != nil {
			if err = s.survive(f, err); err != nil {
				return err
			}
			continue
		}
		switch {
		case id == "":
		case first == nil:
			first, s.id = f, id
		case id != s.id:
			return stoker.Errorf(stoker.KindInvalid, "store.open", f.dir, "belongs to worker %s, but %s to worker %s: give each worker its own folders", id[:8], first.dir, s.id[:8])
		}
	}
	return nil
}

// newestAtStart returns the folder whose documents are right: of those that
// have the id, the one with the highest generation, else the first.
func (s *Store) newestAtStart() (from *folder) {
	best := int64(-2)
	for _, f := range s.folders {
		if f.out() {
			continue
		}
		generation := int64(-1) // a new folder
		if id, err := f.readID(); err == nil && id != "" {
			m, err := f.readMembers()
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				s.log.Warn("a folder does not say how new its documents are", "folder", f.dir, "error", err)
			}
			generation = m.Generation
		}
		if generation > best {
			from, best = f, generation
		}
	}
	s.generation = max(s.generation, best)
	return from
}

// readID reads the worker's id; "" if the folder has none yet.
func (f *folder) readID() (string, error) {
	path := filepath.Join(f.dir, "id")
	body, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", failed("store.open", path, err)
	}
	id := strings.TrimSpace(string(body))
	if len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" {
		return "", stoker.Errorf(stoker.KindCorrupt, "store.open", path, "holds no worker id; remove it to become a new worker")
	}
	return id, nil
}

func (f *folder) readMembers() (m members, err error) {
	body, err := os.ReadFile(filepath.Join(f.dir, membersFile))
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(body, &m)
}

// likeLocked gives a folder the id and the documents of another one.
func (f *folder) likeLocked(from *folder) error {
	if id, err := f.readID(); err != nil {
		return err
	} else if id == "" {
		if err := f.s.disk.writeAtomic(filepath.Join(f.dir, "id"), []byte(f.s.id+"\n")); err != nil {
			return failed("store.open", f.dir, err)
		}
	}
	if f == from {
		return nil
	}
	keep := []string{reservationsFile}
	for name := range f.s.states {
		keep = append(keep, filepath.Join("state", name+".json"))
	}
	for _, name := range keep {
		body, err := os.ReadFile(filepath.Join(from.dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			_ = f.s.disk.remove(filepath.Join(f.dir, name))
			continue
		} else if err != nil {
			return failed("store.open", from.dir, err)
		}
		if have, err := os.ReadFile(filepath.Join(f.dir, name)); err == nil && string(have) == string(body) {
			continue
		}
		if err := f.s.disk.writeAtomic(filepath.Join(f.dir, name), body); err != nil {
			return failed("store.open", f.dir, err)
		}
	}
	return f.forgetOthers()
}

// forgetOthers removes documents that the others do not have any more.
func (f *folder) forgetOthers() error {
	dir := filepath.Join(f.dir, "state")
	files, err := os.ReadDir(dir)
	if err != nil {
		return failed("store.open", dir, err)
	}
	for _, file := range files {
		name, ok := strings.CutSuffix(file.Name(), ".json")
		if _, known := f.s.states[name]; !ok || !known {
			if err := f.s.disk.removeAll(filepath.Join(dir, file.Name())); err != nil {
				return failed("store.open", dir, err)
			}
		}
	}
	return nil
}

// everywhere changes a document in every folder in service. A folder that
// refuses, or is out of service since the last change, is left behind with old
// documents, and the others say so.
func (s *Store) everywhere(change func(f *folder) error) error {
	var done int
	var behind []*folder
	var err error = stoker.Errorf(stoker.KindTransient, "store.state", s.folders[0].dir, "no cache folder is in service: see stoker doctor")
	for _, f := range s.folders {
		if f.stale {
			continue
		}
		if f.out() {
			behind = append(behind, f)
			continue
		}
		e := f.there()
		if e == nil {
			e = change(f)
		}
		if e == nil {
			done++
			continue
		}
		s.noteLocked(f, e)
		behind, err = append(behind, f), failed("store.state", f.dir, e)
	}
	if done == 0 {
		return err
	}
	for _, f := range behind {
		f.stale = true
	}
	if len(behind) > 0 {
		return s.bumpLocked()
	}
	return nil
}

// bumpLocked gives the folders whose documents are new a higher generation.
func (s *Store) bumpLocked() error {
	s.generation = max(s.generation+1, time.Now().UnixNano())
	m := members{s.generation, map[string]string{}}
	for _, f := range s.folders {
		if !f.out() {
			m.Mounts[f.dir] = mountPoint(f.dir)
		}
	}
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return s.everywhere(func(f *folder) error {
		return s.disk.writeAtomic(filepath.Join(f.dir, membersFile), body)
	})
}
