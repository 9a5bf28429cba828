package testenv

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
)

// handler passes a request on unchanged. The Host header stays, because the
// signature covers it.
func (p *Proxy) handler(backend string) http.Handler {
	to, err := url.Parse(backend)
	if err != nil {
		panic(err) // backend comes from the test
	}
	return p.withFaults(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = to.Scheme, to.Host
			r.Out.Host = r.In.Host
		},
		Transport: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true},
		ModifyResponse: func(resp *http.Response) error {
			r := resp.Request
			if g, ok := objectOf(r); ok && resp.StatusCode < 300 {
				p.note(g)
				faulty(resp)
				resp.Body = &countedBody{resp.Body, func(n int) {
					p.add(r.URL.Path, 0, int64(n))
					p.pass(r.Context())
				}}
			}
			return nil
		},
		ErrorLog:     log.New(io.Discard, "", 0), // faults are meant
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	})
}

// objectOf tells what a GET of an object asks for: an object's path has a key
// behind the bucket; listings have a query.
func objectOf(r *http.Request) (g Get, ok bool) {
	_, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if r.Method != http.MethodGet || key == "" {
		return g, false
	}
	g = Get{Key: r.URL.Path, To: -1}
	var last int64
	if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &g.From, &last); n == 2 {
		g.To = last + 1
	}
	return g, true
}

// note enters a GET into the log.
func (p *Proxy) note(g Get) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gets[g.Key]++
	p.log = append(p.log, g)
}

// Hold stops all bodies once n bytes of objects have gone through, until
// release is called; reached is closed when they stand still. One hold at a
// time.
func (p *Proxy) Hold(n int64) (reached <-chan struct{}, release func()) {
	g := &gate{from: n, reached: make(chan struct{}), open: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gate = g
	return g.reached, sync.OnceFunc(func() { close(g.open) })
}

type gate struct {
	from          int64
	once          sync.Once
	reached, open chan struct{}
}

// pass waits at the gate, if there is one and enough has gone through.
func (p *Proxy) pass(ctx context.Context) {
	p.mu.Lock()
	g, total := p.gate, p.total
	p.mu.Unlock()
	if g == nil || total < g.from {
		return
	}
	g.once.Do(func() { close(g.reached) })
	select {
	case <-g.open:
	case <-ctx.Done():
	}
}

type countedBody struct {
	io.ReadCloser
	count func(int)
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.count(n)
	return n, err
}
