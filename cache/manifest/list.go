package manifest

import (
	"context"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"stoker.dev"
	"stoker.dev/ufs"
)

// listRoots lists every root in parallel and hands each page's objects to
// emit, from several goroutines, in no order. An error of emit ends it.
func listRoots(ctx context.Context, o BuildOptions, emit func(root int, objects []ufs.Object) error) error {
	tokens := make(chan struct{}, o.Parallel)
	var objects, size, pages atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for i, root := range o.Roots {
		if _, _, reason := pathOf(root.Folder, "", "", 0); reason != "" || strings.HasSuffix(root.Folder, "/") {
			return stoker.Errorf(stoker.KindInvalid, "manifest.build", root.Folder, "not a folder's path: %s", reason)
		}
		g.Go(func() error {
			fs, prefix, err := o.Open(ctx, root.Location)
			if err != nil {
				return err
			}
			l := &lister{fs: fs, prefix: prefix, parallel: tokens, page: func(found []ufs.Object) error {
				n, b, p := objects.Add(int64(len(found))), size.Add(bytesOf(found)), pages.Add(1)
				if o.Progress != nil {
					o.Progress(n, b, p)
				}
				return emit(i, found)
			}}
			return l.list(ctx)
		})
	}
	return g.Wait()
}

func bytesOf(objects []ufs.Object) (n int64) {
	for _, o := range objects {
		n += o.Version.Bytes
	}
	return n
}

// lister lists one root by folders, several at a time.
type lister struct {
	fs       ufs.FS
	prefix   string
	parallel chan struct{} // a token for each request in flight
	page     func(objects []ufs.Object) error
}

// list hands all objects of the root to page, in no order.
func (l *lister) list(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	var folder func(prefix string) error
	folder = func(prefix string) error {
		for o := (ufs.ListOptions{Prefix: prefix, Delimiter: "/"}); ; {
			select {
			case l.parallel <- struct{}{}:
			case <-ctx.Done():
				return ctx.Err()
			}
			p, err := l.fs.List(ctx, o)
			if err == nil {
				err = l.page(p.Objects) // under the token, so that no pages pile up
			}
			<-l.parallel
			if err != nil {
				return err
			}
			for _, sub := range p.Prefixes {
				if sub == prefix {
					return stoker.Errorf(stoker.KindCorrupt, "manifest.list", prefix, "the store lists a folder as its own sub-folder")
				}
				// Folders wait for a token in goroutines of their own: a few KB
				// each, bounded by the number of folders, not of objects.
				g.Go(func() error { return folder(sub) })
			}
			if p.Next == "" {
				return nil
			}
			o.Token = p.Next
		}
	}
	g.Go(func() error { return folder(l.prefix) })
	return g.Wait()
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
