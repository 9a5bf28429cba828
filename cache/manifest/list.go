package manifest

import "strings"

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
