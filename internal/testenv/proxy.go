package testenv

import (
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
)

// handler passes a request on unchanged. The Host header stays, because the
// signature covers it.
func (p *Proxy) handler(backend string) http.Handler {
	to, err := url.Parse(backend)
	if err != nil {
		panic(err) // backend comes from the test
	}
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = to.Scheme, to.Host
			r.Out.Host = r.In.Host
		},
		Transport: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true},
		ModifyResponse: func(resp *http.Response) error {
			r := resp.Request
			// An object's path has a key behind the bucket; listings have a query.
			_, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
			if r.Method == http.MethodGet && key != "" && resp.StatusCode < 300 {
				p.add(r.URL.Path, 1, 0)
				resp.Body = &countedBody{resp.Body, func(n int) { p.add(r.URL.Path, 0, int64(n)) }}
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
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
