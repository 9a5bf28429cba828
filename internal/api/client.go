package api

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"stoker.dev"
)

const (
	slowAfter     = 2 * time.Second  // until whoever waits for an answer is told that he waits
	answerTimeout = 30 * time.Second // for an answer that takes no work
	workTimeout   = 5 * time.Minute  // for one that does: mount, unmount, evict
	deepTimeout   = 12 * time.Hour   // to read every byte of a worker again
	maxLineBytes  = 256 << 20        // one line of a stream; a certificate lists every failed object
)

// ClientOptions says how to reach a daemon.
type ClientOptions struct {
	URL       string // http://, https:// or unix:// URL; a path alone is a Unix socket
	TokenFile string // file with the bearer token; "" = none. Only used over http and https
	Token     string // the bearer token itself; wins over TokenFile
	Hint      string // what to do when nobody answers, the end of one sentence
	// Slow is called, once, when an answer has not begun within some seconds, with
	// who is asked and where; nil = nobody is told.
	Slow func(what, at string)
}

// caller is one end of the JSON-over-HTTP conversation with one daemon.
type caller struct {
	what  string // "controller" or "worker", for messages
	shown string // the address as the user wrote it
	base  string // URL before /v1
	token string
	hint  string
	http  *http.Client
	slow  func() // may be nil; may be called more than once
}

func newCaller(what string, o ClientOptions) (*caller, error) {
	c := &caller{what: what, shown: o.URL, hint: o.Hint, token: o.Token}
	if o.Slow != nil {
		c.slow = sync.OnceFunc(func() { o.Slow(what, o.URL) })
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: 10 * time.Second, ForceAttemptHTTP2: false, IdleConnTimeout: 60 * time.Second}
	c.http = &http.Client{
		Transport: transport,
		// A redirect would carry the token to where nobody said.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	path, isSocket := strings.CutPrefix(o.URL, "unix://")
	if isSocket || strings.HasPrefix(o.URL, "/") {
		if !strings.HasPrefix(path, "/") {
			return nil, stoker.Errorf(stoker.KindInvalid, what, o.URL, "a socket's path is absolute: unix:///run/stoker/%s.sock", what)
		}
		c.base = "http://" + what
		transport.Proxy = nil
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return DialUnix(ctx, path) }
		return c, nil
	}
	u, err := url.Parse(o.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, stoker.Errorf(stoker.KindInvalid, what, o.URL, "want an address like unix:///run/stoker/%s.sock, http://host:port or https://host:port", what)
	}
	transport.DialContext = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	c.base = strings.TrimRight(o.URL, "/")
	if c.token == "" && o.TokenFile != "" {
		if c.token, err = readToken(o.TokenFile); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// readToken takes the last word of the first line that is no comment: the file
// holds the token alone, or a daemon's "principal token".
func readToken(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		kind := stoker.KindInvalid
		if errors.Is(err, os.ErrPermission) {
			kind = stoker.KindDenied
		}
		return "", stoker.Errorf(kind, "token file", path, "%w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, 64<<10))
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		if len(words) > 2 {
			return "", stoker.Errorf(stoker.KindInvalid, "token file", path, "want a line with the token alone")
		}
		return words[len(words)-1], nil
	}
	return "", stoker.Errorf(stoker.KindInvalid, "token file", path, "holds no token")
}

// send makes one request and returns the answer if it is 2xx.
func (c *caller) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return nil, stoker.Errorf(stoker.KindInternal, method+" "+path, "", "%w", err)
		}
		r = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, r)
	if err != nil {
		return nil, stoker.Errorf(stoker.KindInvalid, method+" "+path, "", "%w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if c.slow != nil {
		defer time.AfterFunc(slowAfter, c.slow).Stop()
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.failed(ctx, err)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		defer resp.Body.Close()
		return nil, ReadError(resp)
	}
	return resp, nil
}

// lostError says that the other side was not there, or went away in mid-answer.
type lostError struct{ error }

func lost(format string, args ...any) error { return &lostError{fmt.Errorf(format, args...)} }

// Unwrap returns what happened to the connection.
func (e *lostError) Unwrap() error { return e.error }

// Lost reports whether err says that the other side was not there, or went
// away in mid-answer: nothing is known of what it did. Requests that may be
// repeated may be repeated then.
func Lost(err error) bool {
	var l *lostError
	return errors.As(err, &l)
}

// failed gives an error of the transport its kind and a text that says what to do.
func (c *caller) failed(ctx context.Context, err error) error {
	if cause := ctx.Err(); errors.Is(cause, context.Canceled) {
		return cause
	}
	var outer *url.Error // its text repeats method and URL
	if errors.As(err, &outer) {
		err = outer.Err
	}
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		return stoker.Errorf(stoker.KindTransient, c.what, c.shown, "%w", lost("nobody listens there: %s", c.hint))
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return stoker.Errorf(stoker.KindDenied, c.what, c.shown, "this user may not connect to it")
	case errors.Is(err, context.DeadlineExceeded):
		return stoker.Errorf(stoker.KindTransient, c.what, c.shown, "no answer in time: try again, or look into its log")
	case errors.As(err, &certificate):
		return stoker.Errorf(stoker.KindInvalid, c.what, c.shown, "%w", err)
	default:
		return stoker.Errorf(stoker.KindTransient, c.what, c.shown, "%w", lost("%w: %s", err, c.hint))
	}
}

// call makes one request and decodes the answer into out, if out is not nil.
func (c *caller) call(ctx context.Context, timeout time.Duration, method, path string, body, out any) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // only to use the connection again
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		if ctx.Err() != nil {
			return c.failed(ctx, ctx.Err())
		}
		return stoker.Errorf(stoker.KindTransient, c.what, c.shown, "answer to %s %s: %w", method, path, err)
	}
	return nil
}

// get is call with a fresh answer; nothing of it is returned with an error.
func get[T any](ctx context.Context, c *caller, timeout time.Duration, method, path string, body any) (T, error) {
	var out, none T
	if err := c.call(ctx, timeout, method, path, body, &out); err != nil {
		return none, err
	}
	return out, nil
}

// stream makes one request and hands each line of its answer to each, until
// one is last. An Error line ends it as an error; so does an end too early.
func (c *caller) stream(ctx context.Context, method, path string, body any, each func(Event), last func(Event) bool) (Event, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return Event{}, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxLineBytes)
	for lines.Scan() {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var e Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return Event{}, stoker.Errorf(stoker.KindTransient, c.what, c.shown, "a line of %s %s: %w", method, path, err)
		}
		if e.Error != nil {
			return Event{}, e.Error.Err(method+" "+path, "")
		}
		if each != nil {
			each(e)
		}
		if last(e) {
			return e, nil
		}
	}
	if err := lines.Err(); err != nil {
		return Event{}, c.failed(ctx, err)
	}
	return Event{}, stoker.Errorf(stoker.KindTransient, c.what, c.shown, "%w", lost("it hung up before the end of %s %s: %s", method, path, c.hint))
}
