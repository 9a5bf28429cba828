package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"stoker.dev/cache/store"
)

// byteSize is a flag in bytes: 2GiB, 500MB, 1048576.
type byteSize int64

// Set implements pflag.Value.
func (b *byteSize) Set(s string) error {
	number := strings.TrimRightFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	unit := strings.TrimSpace(s[len(number):])
	units := map[string]float64{"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
		"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
	f, err := strconv.ParseFloat(number, 64)
	factor, ok := units[strings.ToUpper(unit)]
	if err != nil || !ok || f < 0 || f*factor > math.MaxInt64/2 {
		return fmt.Errorf("%q is no number of bytes; write 2GiB, 500MB or 1048576", s)
	}
	*b = byteSize(f * factor)
	return nil
}

// String implements pflag.Value.
func (b *byteSize) String() string { return strconv.FormatInt(int64(*b), 10) }

// Type implements pflag.Value.
func (b *byteSize) Type() string { return "bytes" }

// folderList is a flag that names cache folders: FOLDER=BYTES, given again for
// each, or several with commas between them.
type folderList []store.Folder

// Set implements pflag.Value.
func (l *folderList) Set(s string) error {
	for one := range strings.SplitSeq(s, ",") {
		cut := strings.LastIndex(one, "=")
		if cut <= 0 {
			return fmt.Errorf("%q is no cache folder; write FOLDER=BYTES, as in /nvme0/stoker=500GiB", one)
		}
		var bytes byteSize
		if err := bytes.Set(one[cut+1:]); err != nil {
			return err
		}
		*l = append(*l, store.Folder{Dir: one[:cut], CapacityBytes: int64(bytes)})
	}
	return nil
}

// String implements pflag.Value.
func (l *folderList) String() string {
	parts := make([]string, len(*l))
	for i, f := range *l {
		parts[i] = fmt.Sprintf("%s=%d", f.Dir, f.CapacityBytes)
	}
	return strings.Join(parts, ",")
}

// Type implements pflag.Value.
func (l *folderList) Type() string { return "folder=bytes" }

// folders returns them with paths that outlive a change of folder.
func (l *folderList) folders() []store.Folder {
	var out []store.Folder
	for _, f := range *l {
		out = append(out, store.Folder{Dir: absolute(f.Dir), CapacityBytes: f.CapacityBytes})
	}
	return out
}
