package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"stoker.dev"
)

const (
	formatFile = "format"
	// format is that of all that lies in a cache folder: shards, indexes and
	// documents. Any change that an older program would misread makes a new one.
	format = "1"
)

// checkFormat refuses a folder of another format, before anything in it is
// read as damaged and thrown away. A folder that does not say is of format 1.
func (f *folder) checkFormat() error {
	path := filepath.Join(f.dir, formatFile)
	body, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err = f.s.disk.writeAtomic(path, []byte(format+"\n")); err == nil {
			return nil
		}
		return failed("store.open", path, err)
	case err != nil:
		return failed("store.open", path, err)
	}
	if has := strings.TrimSpace(string(body)); has != format {
		return stoker.Errorf(stoker.KindInvalid, "store.open", path,
			"the folder has format %.20q, this program knows %s: run the release that wrote it, or give an empty folder (its data is fetched again)", has, format)
	}
	return nil
}
