package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"

	"stoker.dev"
)

// Limits of what one process takes from another.
const (
	maxRequestBytes = 4 << 20   // one request body; the largest is a claim of many datasets
	maxErrorBytes   = 128 << 10 // of an error's body: its text may grow to six times its length in JSON
	maxMessageBytes = 16 << 10  // of an error's text
)

// StreamType is the content type of a stream of Events.
const StreamType = "application/x-ndjson"

// kindHeader carries the kind beside the status, so that an answer without a
// body (HEAD) has one too.
const kindHeader = "Stoker-Kind"

// statusOf maps kinds to HTTP statuses; kindOfStatus is the way back for answers
// that carry no kind, such as a proxy's.
func statusOf(k stoker.Kind) int {
	switch k {
	case stoker.KindNotExist:
		return http.StatusNotFound
	case stoker.KindInvalid:
		return http.StatusBadRequest
	case stoker.KindTransient:
		return http.StatusServiceUnavailable
	case stoker.KindBusy:
		return http.StatusConflict
	case stoker.KindCorrupt:
		return http.StatusUnprocessableEntity
	case stoker.KindStale:
		return http.StatusPreconditionFailed
	case stoker.KindNoSpace:
		return http.StatusInsufficientStorage
	case stoker.KindDenied:
		return http.StatusForbidden
	case stoker.KindHeld:
		return http.StatusLocked
	case stoker.KindDeadline:
		return http.StatusRequestTimeout
	case stoker.KindIncomplete:
		return http.StatusFailedDependency
	default:
		return http.StatusInternalServerError
	}
}

// kindOfStatus is the kind of an answer that does not name one.
func kindOfStatus(status int) stoker.Kind {
	switch status {
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType:
		return stoker.KindInvalid
	case http.StatusNotFound:
		return stoker.KindNotExist
	case http.StatusUnauthorized, http.StatusForbidden:
		return stoker.KindDenied
	case http.StatusRequestTimeout:
		return stoker.KindDeadline
	case http.StatusConflict:
		return stoker.KindBusy
	case http.StatusPreconditionFailed:
		return stoker.KindStale
	case http.StatusUnprocessableEntity:
		return stoker.KindCorrupt
	case http.StatusLocked:
		return stoker.KindHeld
	case http.StatusFailedDependency:
		return stoker.KindIncomplete
	case http.StatusInsufficientStorage:
		return stoker.KindNoSpace
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return stoker.KindTransient
	default:
		return stoker.KindInternal
	}
}

// ErrorOf makes the body that describes err.
func ErrorOf(err error) *ErrorBody {
	msg := err.Error()
	if len(msg) > maxMessageBytes {
		msg = msg[:maxMessageBytes] + "…"
	}
	return &ErrorBody{Kind: stoker.KindOf(err).String(), Message: msg}
}

// Err is the error that b describes, with op and key of the request that got
// it; nil for nil.
func (b *ErrorBody) Err(op, key string) error {
	if b == nil {
		return nil
	}
	return &remoteError{stoker.Error{Op: op, Key: key, Kind: stoker.ParseKind(b.Kind), Err: errors.New(b.Message)}}
}

// remoteError is an error told by another process: its text is that process's
// own, without the op and key of the request that brought it here.
type remoteError struct{ inner stoker.Error }

func (e *remoteError) Error() string { return e.inner.Err.Error() }
func (e *remoteError) Unwrap() error { return &e.inner }

// WriteJSON answers with v. An answer that cannot be sent has no one to be
// told to: the connection is gone.
func WriteJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		WriteError(w, stoker.Errorf(stoker.KindInternal, "api.write", "", "%w", err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the connection is gone; see above
}

// Versioned refuses requests of a version of the API that this program does
// not speak: their paths begin with another /vN/ than /v1/. What mux has no
// handler for is answered as all errors are.
func Versioned(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		if n, is := strings.CutPrefix(first, "v"); is && n != "1" && n != "" && strings.Trim(n, "0123456789") == "" {
			WriteError(w, stoker.Errorf(stoker.KindInvalid, r.Method+" "+r.URL.Path, "", "here is version 1 of the API, not %.20s: upgrade this daemon, or take the release of the client that fits it", n))
			return
		}
		if h, pattern := mux.Handler(r); pattern == "" {
			refuse(w, r, h)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// refuse says what mux would say of a path, or a method, that it does not know.
func refuse(w http.ResponseWriter, r *http.Request, says http.Handler) {
	a := refusal{header: http.Header{}}
	says.ServeHTTP(&a, r)
	err := stoker.Errorf(stoker.KindNotExist, r.Method+" "+r.URL.Path, "", "is not part of this API")
	if allowed := a.header.Get("Allow"); a.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", allowed)
		err = stoker.Errorf(stoker.KindInvalid, r.Method+" "+r.URL.Path, "", "is not part of this API: there is %s", allowed)
	}
	b := ErrorOf(err)
	w.Header().Set(kindHeader, b.Kind)
	WriteJSON(w, a.status, b)
}

// refusal keeps an answer's head.
type refusal struct {
	header http.Header
	status int
}

func (a *refusal) Header() http.Header         { return a.header }
func (a *refusal) Write(b []byte) (int, error) { return len(b), nil }
func (a *refusal) WriteHeader(status int)      { a.status = status }

// Handler is an HTTP handler whose error becomes the answer.
type Handler func(w http.ResponseWriter, r *http.Request) error

// ServeHTTP implements http.Handler.
func (h Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := h(w, r); err != nil {
		breakOff(r.Context(), err)
		WriteError(w, err)
	}
}

// ErrStopping is the cause with which the contexts of requests end when the
// daemon that serves them is being stopped: nobody has given anything up.
var ErrStopping = errors.New("the daemon is being stopped")

// breakOff cuts the connection in mid-answer if err is no more than the end of
// ctx: the daemon is being stopped, and who asked asks the next one, as if this
// one had died; or who asked has gone. What a daemon cannot do for now because
// it is being stopped is for the next one, too.
func breakOff(ctx context.Context, err error) {
	stopping := errors.Is(context.Cause(ctx), ErrStopping) && stoker.KindOf(err) == stoker.KindTransient
	if ctx.Err() != nil && errors.Is(err, context.Canceled) || stopping {
		panic(http.ErrAbortHandler)
	}
}

// WriteError answers with err: its kind decides the status, its text the body.
func WriteError(w http.ResponseWriter, err error) {
	b := ErrorOf(err)
	w.Header().Set(kindHeader, b.Kind)
	if stoker.KindOf(err) == stoker.KindTransient {
		w.Header().Set("Retry-After", "1")
	}
	WriteJSON(w, statusOf(stoker.KindOf(err)), b)
}

// ReadError makes the error that an answer outside 2xx carries; what is no
// answer of ours (a proxy's page) gets its kind from the status. It reads the
// body but does not close it.
func ReadError(resp *http.Response) error {
	op := "api"
	if resp.Request != nil {
		op = resp.Request.Method + " " + resp.Request.URL.Path
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes))
	var b ErrorBody
	if err == nil && json.Unmarshal(raw, &b) == nil && b.Kind != "" {
		return b.Err(op, "")
	}
	kind := kindOfStatus(resp.StatusCode)
	if name := resp.Header.Get(kindHeader); name != "" {
		kind = stoker.ParseKind(name)
	}
	return stoker.Errorf(kind, op, "", "answer %s", resp.Status)
}

// ReadJSON reads the request's body into v: one JSON value, no unknown fields,
// at most 4 MiB. An empty body leaves v as it is.
func ReadJSON(w http.ResponseWriter, r *http.Request, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequestBytes))
	d.DisallowUnknownFields()
	if err := d.Decode(v); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		return stoker.Errorf(stoker.KindInvalid, "api.read", r.URL.Path, "request body: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return stoker.Errorf(stoker.KindInvalid, "api.read", r.URL.Path, "request body: more than one JSON value")
	}
	return nil
}

// Stream writes Events to one answer, each flushed at once. Its methods may be
// called from several goroutines. Until the first Send nothing is answered, so
// that Fail can still choose the status.
type Stream struct {
	w  http.ResponseWriter
	rc *http.ResponseController

	mu      sync.Mutex
	started bool // +checklocks:mu
}

// NewStream begins a stream on w.
func NewStream(w http.ResponseWriter) *Stream {
	return &Stream{w: w, rc: http.NewResponseController(w)}
}

// Send writes one event. An error means that the client has gone.
func (s *Stream) Send(e Event) error {
	line, err := json.Marshal(e)
	if err != nil {
		return stoker.Errorf(stoker.KindInternal, "api.stream", "", "%w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.started {
		s.w.Header().Set("Content-Type", StreamType)
		s.w.Header().Set("X-Accel-Buffering", "no") // proxies pass lines on as they come
		s.w.WriteHeader(http.StatusOK)
		s.started = true
	}
	if _, err := s.w.Write(append(line, '\n')); err != nil {
		return stoker.Errorf(stoker.KindTransient, "api.stream", "", "%w", err)
	}
	if err := s.rc.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return stoker.Errorf(stoker.KindTransient, "api.stream", "", "%w", err)
	}
	return nil
}

// Fail ends the stream with err: as the whole answer if nothing was sent yet,
// else as its last line. An end of ctx is no answer: the connection is cut.
func (s *Stream) Fail(ctx context.Context, err error) {
	breakOff(ctx, err)
	s.mu.Lock()
	started := s.started
	s.mu.Unlock()
	if !started {
		WriteError(s.w, err)
		return
	}
	_ = s.Send(Event{Error: ErrorOf(err)}) // a client that has gone cannot be told
}
