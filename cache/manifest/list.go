package manifest

import (
	"context"
	"encoding/json"
	"strings"

	"stoker.dev"
	"stoker.dev/cache/listing"
	"stoker.dev/ufs"
)

// list lists all roots. Nothing is asked for if one of them is wrong.
func list(ctx context.Context, o BuildOptions, emit func(root int, objects []ufs.Object) error) error {
	of, err := json.Marshal(o.Roots)
	if err != nil {
		return stoker.Errorf(stoker.KindInternal, "manifest.build", "", "%w", err)
	}
	l := listing.Options{Parallel: o.Parallel, Progress: o.Progress, Journal: o.Journal, Of: of}
	for _, root := range o.Roots {
		if _, _, reason := pathOf(root.Folder, "", "", 0); reason != "" || strings.HasSuffix(root.Folder, "/") {
			return stoker.Errorf(stoker.KindInvalid, "manifest.build", root.Folder, "not a folder's path: %s", reason)
		}
	}
	for _, root := range o.Roots {
		fs, prefix, err := o.Open(ctx, root.Location)
		if err != nil {
			return err
		}
		l.Sources = append(l.Sources, listing.Source{FS: fs, Prefix: prefix})
	}
	return listing.List(ctx, l, emit)
}

// pathOf makes the path of a key, or says why it can have none (docs/semantics.md).
func pathOf(key, prefix, folder string, bytes int64) (path string, dir bool, reason string) {
	rel := strings.TrimPrefix(key, prefix)
	if strings.HasSuffix(rel, "/") || rel == "" {
		if bytes > 0 {
			return "", false, "a folder marker with content"
		}
		dir = true
		rel = strings.TrimSuffix(rel, "/")
	}
	path = rel
	if folder != "" {
		path = strings.TrimSuffix(folder+"/"+rel, "/")
	}
	if path == "" {
		return "", true, ""
	}
	if len(path) > 4095 {
		return "", dir, "path longer than 4095 bytes"
	}
	for part := range strings.SplitSeq(path, "/") {
		switch {
		case part == "":
			return "", dir, "empty path segment"
		case part == "." || part == "..":
			return "", dir, "path segment " + part
		case len(part) > 255:
			return "", dir, "path segment longer than 255 bytes"
		case strings.IndexByte(part, 0) >= 0:
			return "", dir, "NUL byte"
		}
	}
	return path, dir, ""
}

// prefixOf returns the key prefix of a root's URI: "" or ending in a slash.
func prefixOf(uri string) string {
	_, rest, ok := strings.Cut(uri, "://")
	if !ok {
		return ""
	}
	_, prefix, _ := strings.Cut(rest, "/")
	if prefix = strings.Trim(prefix, "/"); prefix == "" {
		return ""
	}
	return prefix + "/"
}
