package testenv

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"testing"
	"time"
)

// Fault is what goes wrong with one GET of an object. Of the ways to end it,
// one is set; the zero value lets the request pass.
type Fault struct {
	Status int         // answered in place of the store, with Code in its body
	Code   string      // of S3: SlowDown
	Header http.Header // of that answer, or changed in the store's own

	Reset bool // the connection is reset before the answer, or after After bytes if that is > 0
	Cut   bool // the connection ends after After bytes
	End   bool // the body ends after After bytes, and says so before
	Stall bool // nothing more comes after After bytes until the caller goes away
	Flip  bool // the byte at After is another
	After int64

	Late <-chan struct{} // the request is passed on once this is closed
}

// Inject lets fault decide about each GET of an object from now on: n counts
// them from 0. It may be called at the same time from several goroutines; nil
// ends it.
func (p *Proxy) Inject(fault func(g Get, n int) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.asked = fault, 0
}

// faultOf asks what happens to a request.
func (p *Proxy) faultOf(g Get) Fault {
	p.mu.Lock()
	fault, n := p.fault, p.asked
	p.asked++
	p.mu.Unlock()
	if fault == nil {
		return Fault{}
	}
	return fault(g, n)
}

type (
	faultKey struct{}
	connKey  struct{}
)

// withFaults is next with what Inject asks for before an answer.
func (p *Proxy) withFaults(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g, ok := objectOf(r)
		if !ok {
			if ended, ok := p.listed(r); ok {
				defer ended()
				next.ServeHTTP(w, r)
			}
			return
		}
		f := p.faultOf(g)
		if f.Late != nil {
			select {
			case <-f.Late:
			case <-r.Context().Done():
				return
			}
		}
		switch {
		case f.Status != 0:
			for k, v := range f.Header {
				w.Header()[k] = v
			}
			w.WriteHeader(f.Status)
			fmt.Fprintf(w, "<Error><Code>%s</Code><Message>injected</Message></Error>", f.Code)
		case f.Reset && f.After == 0:
			reset(r.Context())
		default:
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), faultKey{}, f)))
		}
	})
}

// reset ends the connection of a request with a reset.
func reset(ctx context.Context) {
	if c, ok := ctx.Value(connKey{}).(*net.TCPConn); ok {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
	panic(http.ErrAbortHandler)
}

// faulty is the store's answer with what Inject asks for in its body.
func faulty(resp *http.Response) {
	f, _ := resp.Request.Context().Value(faultKey{}).(Fault)
	if f.Status != 0 {
		return
	}
	for k, v := range f.Header {
		resp.Header[k] = v
	}
	if n, err := strconv.ParseInt(f.Header.Get("Content-Length"), 10, 64); err == nil {
		resp.ContentLength = n
	}
	if f.End {
		resp.ContentLength = f.After
		resp.Header.Set("Content-Length", strconv.FormatInt(f.After, 10))
	}
	if f.Reset || f.Cut || f.End || f.Stall || f.Flip {
		resp.Body = &faultyBody{ReadCloser: resp.Body, ctx: resp.Request.Context(), f: f}
	}
}

type faultyBody struct {
	io.ReadCloser
	ctx context.Context
	f   Fault
	at  int64
}

func (b *faultyBody) Read(p []byte) (int, error) {
	left := b.f.After - b.at
	if left > 0 {
		p = p[:min(int64(len(p)), left)]
	} else if left == 0 {
		switch {
		case b.f.End:
			return 0, io.EOF
		case b.f.Cut:
			return 0, io.ErrUnexpectedEOF
		case b.f.Reset:
			reset(b.ctx)
		case b.f.Stall:
			<-b.ctx.Done()
			return 0, b.ctx.Err()
		}
	}
	n, err := b.ReadCloser.Read(p)
	if b.f.Flip && left == 0 && n > 0 {
		p[0] ^= 1
	}
	b.at += int64(n)
	return n, err
}

// Stop makes the endpoint refuse connections, and ends those there are, until
// Start.
func (p *Proxy) Stop() { _ = p.server.Close() }

// Start serves again at the same address.
func (p *Proxy) Start(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp", p.address)
	if err != nil {
		t.Fatal(err)
	}
	p.serve(l)
}

func (p *Proxy) serve(l net.Listener) {
	s := &http.Server{Handler: p.handle, ReadHeaderTimeout: 10 * time.Second,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) }}
	p.server = s
	go func() { _ = s.Serve(l) }()
}
