package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
)

const (
	demoBytes  = 640 << 20 // of the whole dataset, at least
	demoFiles  = 10_000
	largeBytes = 96 << 20 // of one large object: more than one extent
)

// dataset is what the demo trains on.
type dataset struct {
	files, bytes int64
	sums         string // path of a JSON object: file -> SHA-256
}

// makeDataset copies the Go distribution into dir and adds large objects made
// of its files, and notes the checksum of each.
func makeDataset(ctx context.Context, dir, sums string) (*dataset, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOROOT: %w: the demo's dataset is made of the Go distribution", err)
	}
	root := strings.TrimSpace(string(out))
	d := &dataset{sums: sums}
	known := map[string]string{}
	var paths []string
	err = filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || ctx.Err() != nil {
			return errorsFirst(err, ctx.Err())
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		paths = append(paths, p)
		return d.write(known, dir, filepath.Join("go", rel), func(w io.Writer) error { return copyFile(w, p) })
	})
	if err != nil {
		return nil, err
	}
	if d.files < demoFiles {
		return nil, fmt.Errorf("%s has %d files only: the demo wants %d", root, d.files, demoFiles)
	}
	next := 0
	for n := 0; d.bytes < demoBytes; n++ {
		err := d.write(known, dir, fmt.Sprintf("corpus/part-%02d.bin", n), func(w io.Writer) error {
			for left := int64(largeBytes); left > 0 && ctx.Err() == nil; next++ {
				body, err := os.ReadFile(paths[next%len(paths)])
				if err != nil {
					return err
				}
				body = body[:min(int64(len(body)), left)]
				left -= int64(len(body))
				if _, err := w.Write(body); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
		if err != nil {
			return nil, err
		}
	}
	body, err := json.Marshal(known)
	if err != nil {
		return nil, err
	}
	return d, writeFile(sums, body, 0o644)
}

func errorsFirst(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func copyFile(w io.Writer, path string) error {
	body, err := os.ReadFile(path)
	if err == nil {
		_, err = io.Copy(w, bytes.NewReader(body))
	}
	return err
}

func (d *dataset) write(known map[string]string, dir, rel string, fill func(io.Writer) error) error {
	path := filepath.Join(dir, rel)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if err := fill(io.MultiWriter(f, h)); err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	known[rel] = hex.EncodeToString(h.Sum(nil))
	d.files, d.bytes = d.files+1, d.bytes+st.Size()
	return f.Close()
}

// counts is what the S3 side has sent of objects.
type counts struct {
	Requests int64 `json:"requests"`
	Bytes    int64 `json:"bytes"`
}

// proxy stands between the workers and the S3 server and counts. The Host
// header stays, because the signature covers it.
type proxy struct {
	URL, Counts     string // where to read objects, and the counts
	requests, bytes atomic.Int64
	servers         []*httptest.Server
}

func startProxy(backend string) (*proxy, error) {
	to, err := url.Parse(backend)
	if err != nil {
		return nil, err
	}
	p := &proxy{}
	pass := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = to.Scheme, to.Host
			r.Out.Host = r.In.Host
		},
		Transport: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true},
		ModifyResponse: func(resp *http.Response) error {
			_, key, _ := strings.Cut(strings.TrimPrefix(resp.Request.URL.Path, "/"), "/")
			if resp.Request.Method == http.MethodGet && key != "" {
				p.requests.Add(1)
				resp.Body = &counted{resp.Body, &p.bytes}
			}
			return nil
		},
	}
	s3, count := httptest.NewServer(pass), httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(p.count()) // the reader is this program
	}))
	p.URL, p.Counts, p.servers = s3.URL, count.URL, []*httptest.Server{s3, count}
	return p, nil
}

func (p *proxy) count() counts { return counts{p.requests.Load(), p.bytes.Load()} }

// Close stops counting.
func (p *proxy) Close() {
	for _, s := range p.servers {
		s.CloseClientConnections()
		s.Close()
	}
}

type counted struct {
	io.ReadCloser
	n *atomic.Int64
}

// Read implements io.Reader.
func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}
