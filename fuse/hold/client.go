package hold

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"stoker.dev"
)

const (
	answerWithin = 5 * time.Second
	busyWithin   = 5 * time.Second // the end of the last life is noticed much sooner
	retryFirst   = 50 * time.Millisecond
	retryMost    = 2 * time.Second
)

var _ Holder = (*Client)(nil)

// Client is a Holder that leaves descriptors with a Server. If that ends, the
// next one gets all of them again: they live as long as either process.
type Client struct {
	socket, owner string
	log           *slog.Logger
	stop          context.CancelFunc
	tending       sync.WaitGroup

	mu      sync.Mutex // one exchange at a time
	taken   map[string]*os.File
	files   map[string]*os.File // what is put, for the next holder
	session *session            // nil: no holder answers
}

// session is one connection.
type session struct {
	conn    *net.UnixConn
	answers chan received // closed by the reader when the connection has ended
	ended   chan struct{}
}

type received struct {
	answer
	file *os.File
}

// Dial begins a life of an owner. Where no holder answers there is nothing to
// take over, and what is put is handed over when one does. A holder that
// refuses is an error: another process lives under this name (kind Busy), or the
// holder is of another release, or another user's.
func Dial(ctx context.Context, socket, owner string, log *slog.Logger) (*Client, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := checkName(owner); err != nil {
		return nil, err
	}
	c := &Client{socket: socket, owner: owner, log: log, files: map[string]*os.File{}}
	err := c.first(ctx)
	switch k := stoker.KindOf(err); {
	case err == nil:
	case k == stoker.KindTransient:
		log.Warn("the holder of descriptors does not answer: mounts do not outlive this process until it does", "socket", socket, "error", err)
	default:
		return nil, err
	}
	tend, stop := context.WithCancel(context.WithoutCancel(ctx)) // until Close
	c.stop = stop
	c.tending.Go(func() { c.tend(tend) })
	return c, nil
}

// first connects; while the end of the last life has not been noticed yet, it
// tries again.
func (c *Client) first(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	patience := time.NewTimer(busyWithin)
	defer patience.Stop()
	for {
		taken, err := c.connectLocked()
		if stoker.KindOf(err) != stoker.KindBusy {
			c.taken = taken
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-patience.C:
			return err
		case <-time.After(retryFirst):
		}
	}
}

// connectLocked opens a session and returns what the last one left.
func (c *Client) connectLocked() (map[string]*os.File, error) {
	conn, err := net.DialUnix(socketType, nil, &net.UnixAddr{Name: c.socket, Net: socketType})
	if err != nil {
		return nil, stoker.Errorf(stoker.KindTransient, "hold", c.socket, "%w", err)
	}
	s := &session{conn: conn, answers: make(chan received), ended: make(chan struct{})}
	c.tending.Go(s.read)
	fail := func(err error) (map[string]*os.File, error) {
		s.close()
		return nil, err
	}
	a, err := s.exchange(request{Op: opHello, Protocol: protocol, Owner: c.owner}, nil)
	if err != nil {
		return fail(err)
	}
	files := map[string]*os.File{}
	for range a.Count {
		r, err := s.next()
		if err == nil && r.file == nil {
			err = stoker.Errorf(stoker.KindInternal, "hold", c.socket, "descriptor %q did not come", r.Name)
		}
		if err != nil {
			closeFiles(files)
			return fail(err)
		}
		files[r.Name] = r.file
	}
	c.session = s
	return files, nil
}

// tend connects again whenever the holder has gone.
func (c *Client) tend(ctx context.Context) {
	pause := retryFirst
	for {
		c.mu.Lock()
		s := c.session
		c.mu.Unlock()
		if s != nil {
			select {
			case <-ctx.Done():
				return
			case <-s.ended:
			}
			c.log.Warn("the holder of descriptors has ended: mounts do not outlive this process until there is one again", "socket", c.socket)
			c.mu.Lock()
			c.session = nil
			c.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		if err := c.again(); err != nil {
			c.log.Debug("no holder of descriptors yet", "error", err)
			pause = min(2*pause, retryMost)
			continue
		}
		c.log.Info("the holder of descriptors answers", "socket", c.socket)
		pause = retryFirst
	}
}

// again connects to a new holder and gives it what is put.
func (c *Client) again() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	old, err := c.connectLocked()
	if err != nil {
		return err
	}
	for name, f := range old { // of a life before this one, which could not ask for it
		_ = f.Close()
		if c.files[name] == nil {
			if _, err := c.session.exchange(request{Op: opDrop, Name: name}, nil); err != nil {
				return err
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.files)) {
		if _, err := c.session.exchange(request{Op: opPut, Name: name}, c.files[name]); err != nil {
			return err
		}
	}
	return nil
}

// Taken implements Holder.
func (c *Client) Taken() map[string]*os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	files := c.taken
	c.taken = nil
	for name, f := range files { // for a holder that follows this one
		if own, err := duplicate(f); err == nil {
			c.files[name] = own
		}
	}
	return files
}

// Put implements Holder. If no holder answers it is put once one does, and the
// error is of kind Transient.
func (c *Client) Put(name string, f *os.File) error {
	if err := checkName(name); err != nil {
		return err
	}
	own, err := duplicate(f)
	if err != nil {
		return stoker.Errorf(stoker.KindInternal, "hold", name, "%w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.files[name]; old != nil {
		_ = old.Close()
	}
	c.files[name] = own
	return c.askLocked(request{Op: opPut, Name: name}, own)
}

// Drop implements Holder.
func (c *Client) Drop(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.files[name]; old != nil {
		_ = old.Close()
		delete(c.files, name)
	}
	return c.askLocked(request{Op: opDrop, Name: name}, nil)
}

func (c *Client) askLocked(r request, f *os.File) error {
	if c.session == nil {
		return stoker.Errorf(stoker.KindTransient, "hold", c.socket, "no holder answers")
	}
	_, err := c.session.exchange(r, f)
	return err
}

// Answers reports whether a holder has what was put.
func (c *Client) Answers() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session != nil
}

// Close implements Holder.
func (c *Client) Close() error {
	c.stop()
	c.mu.Lock()
	if c.session != nil {
		c.session.close()
		c.session = nil
	}
	closeFiles(c.files)
	closeFiles(c.taken)
	c.mu.Unlock()
	c.tending.Wait()
	return nil
}

// read brings answers until the connection ends.
func (s *session) read() {
	defer close(s.ended)
	defer close(s.answers)
	for {
		var r received
		f, err := receive(s.conn, &r.answer)
		if err != nil {
			return
		}
		r.file = f
		select {
		case s.answers <- r:
		case <-time.After(answerWithin): // nobody asked
			if f != nil {
				_ = f.Close()
			}
			return
		}
	}
}

// next is one packet of the holder.
func (s *session) next() (received, error) {
	select {
	case r, ok := <-s.answers:
		if !ok {
			return received{}, stoker.Errorf(stoker.KindTransient, "hold", "", "the holder has ended")
		}
		return r, nil
	case <-time.After(answerWithin):
		s.close()
		return received{}, stoker.Errorf(stoker.KindTransient, "hold", "", "the holder did not answer within %v", answerWithin)
	}
}

// exchange asks and waits for the answer.
func (s *session) exchange(r request, f *os.File) (answer, error) {
	if err := send(s.conn, r, f); err != nil {
		return answer{}, stoker.Errorf(stoker.KindTransient, "hold", r.Name, "%w", err)
	}
	a, err := s.next()
	if err != nil {
		return answer{}, err
	}
	if a.Error != "" {
		return answer{}, &stoker.Error{Op: "hold", Key: r.Name, Kind: a.Kind, Err: errors.New(a.Error)}
	}
	return a.answer, nil
}

func (s *session) close() { _ = s.conn.Close() }
