package hold

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stoker.dev"
)

// DefaultKeep is how long descriptors are kept for the next life of who put them
// there: who waits for one that never comes gets an error then.
const DefaultKeep = 10 * time.Minute

// ServerOptions configure a Server.
type ServerOptions struct {
	Socket string        // path of its Unix socket, for this uid and root alone
	Keep   time.Duration // after the owner's connection has ended; 0 = DefaultKeep
	Log    *slog.Logger
}

// Server is the holder's process. Each owner, a name, has its own descriptors and at
// most one connection: two lives of a worker never have the same ones.
type Server struct {
	o        ServerOptions
	listener *net.UnixListener

	mu     sync.Mutex
	owners map[string]*owner // +checklocks:mu
}

// owner is one worker, alive or between two lives.
type owner struct {
	files  map[string]*os.File
	lives  bool
	expire *time.Timer // while it does not live
}

// Listen opens the socket. What an earlier process left there is replaced.
func Listen(o ServerOptions) (*Server, error) {
	if o.Keep <= 0 {
		o.Keep = DefaultKeep
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(filepath.Dir(o.Socket), 0o755); err != nil {
		return nil, stoker.Errorf(stoker.KindInvalid, "hold", o.Socket, "%w", err)
	}
	addr := &net.UnixAddr{Name: o.Socket, Net: socketType}
	if c, err := net.DialUnix(socketType, nil, addr); err == nil {
		_ = c.Close()
		return nil, stoker.Errorf(stoker.KindHeld, "hold", o.Socket, "another holder listens there: give each its own --socket")
	} else if errors.Is(err, syscall.ECONNREFUSED) {
		if err := os.Remove(o.Socket); err != nil {
			return nil, stoker.Errorf(stoker.KindInvalid, "hold", o.Socket, "%w", err)
		}
	}
	old := unix.Umask(0o177) // before there is a socket that others may open
	l, err := net.ListenUnix(socketType, addr)
	unix.Umask(old)
	if err != nil {
		return nil, stoker.Errorf(stoker.KindInvalid, "hold", o.Socket, "%w", err)
	}
	return &Server{o: o, listener: l, owners: map[string]*owner{}}, nil
}

// Run serves until ctx ends, and closes what it holds then.
func (s *Server) Run(ctx context.Context) error {
	var serving sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { _ = s.listener.Close() })
	defer stop()
	defer func() {
		serving.Wait()
		s.closeAll()
	}()
	for {
		c, err := s.listener.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return stoker.Errorf(stoker.KindInternal, "hold", s.o.Socket, "%w", err)
		}
		serving.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
			defer stop()
			s.serve(c)
			_ = c.Close()
		})
	}
}

// serve is one connection, from hello to its end.
func (s *Server) serve(c *net.UnixConn) {
	if err := permitted(c); err != nil {
		s.refuse(c, err)
		return
	}
	var hello request
	f, err := receive(c, &hello)
	if f != nil {
		_ = f.Close()
	}
	if err != nil { // somebody asked whether there is a holder
		return
	}
	if hello.Op != opHello || hello.Protocol != protocol || checkName(hello.Owner) != nil {
		s.refuse(c, stoker.Errorf(stoker.KindInvalid, "hold", hello.Owner, "want hello of protocol %d, and an owner: holder and worker are of different releases", protocol))
		return
	}
	files, err := s.begin(hello.Owner)
	if err != nil {
		s.refuse(c, err)
		return
	}
	defer s.end(hello.Owner)
	s.o.Log.Info("a life begins", "owner", hello.Owner, "descriptors", len(files))
	if send(c, answer{Count: len(files)}, nil) != nil {
		return
	}
	for name, f := range files {
		if send(c, answer{Name: name}, f) != nil {
			return
		}
	}
	for {
		var r request
		f, err := receive(c, &r)
		if err != nil {
			return
		}
		if err := s.do(hello.Owner, r, f); err != nil {
			s.refuse(c, err)
		} else if send(c, answer{}, nil) != nil {
			return
		}
	}
}

// permitted lets only this process's uid and root in.
func permitted(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(cerr, err); err != nil {
		return err
	}
	if int(cred.Uid) != os.Geteuid() && cred.Uid != 0 {
		return stoker.Errorf(stoker.KindDenied, "hold", "", "uid %d may not have descriptors of uid %d", cred.Uid, os.Geteuid())
	}
	return nil
}

func (s *Server) refuse(c *net.UnixConn, err error) {
	s.o.Log.Warn("refused", "error", err)
	_ = send(c, answer{Kind: stoker.KindOf(err), Error: err.Error()}, nil)
}

// begin begins a life of an owner and returns what it has here. The files stay
// the server's: only this life can drop them.
func (s *Server) begin(name string) (map[string]*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.owners[name]
	if o == nil {
		o = &owner{files: map[string]*os.File{}}
		s.owners[name] = o
	}
	if o.lives {
		return nil, stoker.Errorf(stoker.KindBusy, "hold", name, "another process has its descriptors")
	}
	o.lives = true
	if o.expire != nil {
		o.expire.Stop()
		o.expire = nil
	}
	files := map[string]*os.File{}
	for name, f := range o.files {
		if ended(f) { // it was unmounted meanwhile
			_ = f.Close()
			delete(o.files, name)
			continue
		}
		files[name] = f
	}
	return files, nil
}

// end ends a life: its descriptors wait for the next one.
func (s *Server) end(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.owners[name]
	o.lives = false
	if len(o.files) == 0 {
		delete(s.owners, name)
		return
	}
	s.o.Log.Info("a life has ended", "owner", name, "descriptors", len(o.files), "kept", s.o.Keep)
	o.expire = time.AfterFunc(s.o.Keep, func() { s.expire(name, o) })
}

func (s *Server) expire(name string, o *owner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.lives || s.owners[name] != o {
		return
	}
	s.o.Log.Warn("no next life has come: its mounts are aborted", "owner", name, "descriptors", len(o.files))
	closeFiles(o.files)
	delete(s.owners, name)
}

// do is one request of a life.
func (s *Server) do(name string, r request, f *os.File) error {
	if err := checkName(r.Name); err != nil {
		if f != nil {
			_ = f.Close()
		}
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	files := s.owners[name].files
	switch {
	case r.Op == opPut && f != nil:
		if old := files[r.Name]; old != nil {
			_ = old.Close()
		}
		files[r.Name] = f
		return nil
	case r.Op == opDrop && f == nil:
		if old := files[r.Name]; old != nil {
			_ = old.Close()
			delete(files, r.Name)
		}
		return nil
	}
	if f != nil {
		_ = f.Close()
	}
	return stoker.Errorf(stoker.KindInvalid, "hold", r.Name, "%q is no request, or lacks its descriptor", r.Op)
}

func (s *Server) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, o := range s.owners {
		if o.expire != nil {
			o.expire.Stop()
		}
		closeFiles(o.files)
		delete(s.owners, name)
	}
}

func closeFiles(files map[string]*os.File) {
	for name, f := range files {
		_ = f.Close()
		delete(files, name)
	}
}
