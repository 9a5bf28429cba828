package s3ufs

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"stoker.dev"
	"stoker.dev/internal/testenv"
	"stoker.dev/ufs"
)

// front passes requests on to an S3 server with the Host that was signed.
func front(t *testing.T, backend string) http.Handler {
	t.Helper()
	to, err := url.Parse(backend)
	if err != nil {
		t.Fatal(err)
	}
	return &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		r.Out.Host = r.In.Host
	}}
}

// withTLS puts TLS before an S3 server, and returns the file of its authority.
func withTLS(t *testing.T, backend string) (srv *httptest.Server, bundle string) {
	t.Helper()
	srv = httptest.NewUnstartedServer(front(t, backend))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes are what is tested
	srv.StartTLS()
	t.Cleanup(srv.Close)
	bundle = filepath.Join(t.TempDir(), "ca.pem")
	body := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(bundle, body, 0o644); err != nil {
		t.Fatal(err)
	}
	return srv, bundle
}

// readHello lists and reads what the tests below put, by both ways to the store.
func readHello(t *testing.T, endpoint string) error {
	t.Helper()
	f, err := Open(t.Context(), Options{Bucket: "tls", Location: ufs.Location{Endpoint: endpoint, PathStyle: true}})
	if err != nil {
		return err
	}
	p, listErr := f.List(t.Context(), ufs.ListOptions{})
	r, err := f.Open(t.Context(), "k", ufs.Version{Bytes: 5}, 0, 5)
	if (err == nil) != (listErr == nil) || stoker.KindOf(err) != stoker.KindOf(listErr) {
		t.Errorf("listing says %v, reading %v", listErr, err)
	}
	if err != nil {
		return err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err == nil && (string(b) != "hello" || len(p.Objects) != 1) {
		err = fmt.Errorf("read %q, listed %v", b, p.Objects)
	}
	return err
}

// A store whose certificate is from a private authority is read with
// AWS_CA_BUNDLE; without it the error says to set it, and nothing is retried.
func TestPrivateAuthority(t *testing.T) {
	srv := testenv.StartS3(t)
	bucket(t, srv, "tls").Put("k", []byte("hello"))
	front, bundle := withTLS(t, srv.Endpoint)
	err := readHello(t, front.URL)
	if stoker.KindOf(err) != stoker.KindInvalid || err == nil || !strings.Contains(err.Error(), "AWS_CA_BUNDLE") {
		t.Errorf("without the authority: %v", err)
	}
	t.Setenv("AWS_CA_BUNDLE", bundle)
	if err := readHello(t, front.URL); err != nil {
		t.Errorf("with the authority: %v", err)
	}
	// Its certificate is for 127.0.0.1 and example.com.
	err = readHello(t, strings.Replace(front.URL, "127.0.0.1", "localhost", 1))
	if stoker.KindOf(err) != stoker.KindInvalid || err == nil || !strings.Contains(err.Error(), "not valid for it") {
		t.Errorf("by another name: %v", err)
	}
	err = readHello(t, strings.Replace(srv.Endpoint, "http:", "https:", 1))
	if stoker.KindOf(err) != stoker.KindInvalid || err == nil || !strings.Contains(err.Error(), "does not speak TLS") {
		t.Errorf("https to an http server: %v", err)
	}
	t.Setenv("AWS_CA_BUNDLE", filepath.Join(t.TempDir(), "none.pem"))
	if err := readHello(t, front.URL); stoker.KindOf(err) != stoker.KindInvalid || err == nil {
		t.Errorf("a bundle that is not there: %v", err)
	}
}

// forwarder is an HTTP proxy that finds every host at one address.
type forwarder struct {
	at   map[string]string // host:port → where it is
	mu   sync.Mutex
	seen []string
}

func (f *forwarder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.seen = append(f.seen, r.Method+" "+r.Host)
	f.mu.Unlock()
	at, ok := f.at[r.Host]
	if !ok {
		http.Error(w, "unknown", http.StatusBadGateway)
		return
	}
	if r.Method != http.MethodConnect {
		(&httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = "http", at, p.In.Host
		}}).ServeHTTP(w, r)
		return
	}
	to, err := net.Dial("tcp", at)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	w.WriteHeader(http.StatusOK)
	c, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		_ = to.Close()
		return
	}
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(to, buf); _ = to.Close() })
	both.Go(func() { _, _ = io.Copy(c, to); _ = c.Close() })
	both.Wait()
}

// Requests go through the proxy of the environment, but for NO_PROXY. net/http
// reads it once, so that another process is needed.
func TestProxies(t *testing.T) {
	if endpoint := os.Getenv("STOKER_TEST_ENDPOINT"); endpoint != "" {
		if err := readHello(t, endpoint); err != nil {
			t.Error(err)
		}
		return
	}
	srv := testenv.StartS3(t)
	bucket(t, srv, "tls").Put("k", []byte("hello"))
	secure, bundle := withTLS(t, srv.Endpoint)
	f := &forwarder{at: map[string]string{
		"example.com:443": secure.Listener.Addr().String(), "example.com": strings.TrimPrefix(srv.Endpoint, "http://"),
	}}
	proxy := httptest.NewServer(f)
	defer proxy.Close()
	for endpoint, want := range map[string]string{"https://example.com": "CONNECT example.com:443", "http://example.com": "GET example.com"} {
		for _, no := range []string{"", "example.com"} {
			f.mu.Lock()
			f.seen = nil
			f.mu.Unlock()
			cmd := exec.Command(os.Args[0], "-test.run", "^TestProxies$")
			cmd.Env = append(os.Environ(), "STOKER_TEST_ENDPOINT="+endpoint, "HTTPS_PROXY="+proxy.URL, "HTTP_PROXY="+proxy.URL, "NO_PROXY="+no, "AWS_CA_BUNDLE="+bundle)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			f.mu.Lock()
			if no == "" && (err != nil || !slices.Contains(f.seen, want)) {
				t.Errorf("%s: the proxy saw %v, want %s (%v)\n%s", endpoint, f.seen, want, err, out)
			}
			if no != "" && (err == nil || len(f.seen) > 0) {
				t.Errorf("%s with NO_PROXY: the proxy saw %v (%v)", endpoint, f.seen, err)
			}
			f.mu.Unlock()
		}
	}
}
