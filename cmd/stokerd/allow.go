package main

import (
	"os"
	"strings"

	"github.com/spf13/pflag"

	"stoker.dev/ufs/posixufs"
)

var _ pflag.Value = (*allowed)(nil)

// allowed is a flag of folders: one or several in each value, as in PATH.
type allowed []string

// Set implements pflag.Value.
func (l *allowed) Set(s string) error {
	for folder := range strings.SplitSeq(s, ":") {
		if folder == "" {
			continue
		}
		if err := posixufs.CheckAllow(folder); err != nil {
			return err
		}
		*l = append(*l, folder)
	}
	return nil
}

// String implements pflag.Value.
func (l *allowed) String() string { return strings.Join(*l, ":") }

// Type implements pflag.Value.
func (l *allowed) Type() string { return "folders" }

// missing lists those that are no folders at present.
func (l *allowed) missing() []string {
	var none []string
	for _, dir := range *l {
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			none = append(none, dir)
		}
	}
	return none
}
