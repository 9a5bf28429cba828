package api

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"stoker.dev"
)

// DaemonName is the principal of the cluster's own daemons in a token file.
// It is an admin, and its token is the one that daemons send to each other.
const DaemonName = "stoker"

// anonymousName is the principal of whom nobody vouches for.
const anonymousName = "anonymous"

// Principal is who sent a request.
type Principal struct {
	Name      string // user name, the token file's name, or "anonymous"
	UID       int    // of the process at the other end of a Unix socket; -1 over TCP
	Admin     bool   // root, the daemon's own user, or the cluster's daemons
	Anonymous bool   // nobody vouches for Name
}

type principalKey struct{}

// WithPrincipal returns a context that carries p.
func WithPrincipal(ctx context.Context, p Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, p)
}

// PrincipalOf returns who sent the request that ctx belongs to; without one,
// anonymous.
func PrincipalOf(ctx context.Context) Principal {
	if p, ok := ctx.Value(principalKey{}).(Principal); ok {
		return p
	}
	return Principal{Name: anonymousName, UID: -1, Anonymous: true}
}

// ConnContext is for http.Server.ConnContext: a connection over a Unix socket
// gets the principal that the kernel names (SO_PEERCRED), any other is
// anonymous until Authenticate has seen its token.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	uid, err := peerUID(u)
	if err != nil {
		return ctx
	}
	if gids, err := peerGroups(u); err == nil {
		ctx = context.WithValue(ctx, groupsKey{}, gids)
	}
	return WithPrincipal(ctx, Principal{
		Name: userName(uid), UID: uid, Admin: uid == 0 || uid == os.Getuid(),
	})
}

// peerUID asks the kernel who is at the other end.
func peerUID(c *net.UnixConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	var cred *syscall.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		cred, failed = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err := errors.Join(err, failed); err != nil {
		return -1, err
	}
	return int(cred.Uid), nil
}

func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return "uid-" + strconv.Itoa(uid)
}

// Tokens is a token file, read: who may come in by TCP. It does not change.
type Tokens struct {
	names map[[sha256.Size]byte]string // by hash, so that look-ups take the same time for any guess
	own   string
}

// LoadTokens reads a token file: one "principal token" per line, # begins a
// comment. It must have a line for the principal "stoker", the daemons
// themselves. The file must not be readable by others. "" gives nil: no tokens.
func LoadTokens(path string) (*Tokens, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, stoker.Errorf(stoker.KindInvalid, "token file", path, "%w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, stoker.Errorf(stoker.KindInvalid, "token file", path, "%w", err)
	} else if st.Mode().Perm()&0o007 != 0 {
		return nil, stoker.Errorf(stoker.KindInvalid, "token file", path, "every user can read it: chmod 0640 or stricter")
	}
	t := &Tokens{names: map[[sha256.Size]byte]string{}}
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		if err := t.add(lines.Text()); err != nil {
			return nil, stoker.Errorf(stoker.KindInvalid, "token file", path+":"+strconv.Itoa(n), "%w", err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, stoker.Errorf(stoker.KindInvalid, "token file", path, "%w", err)
	}
	if t.own == "" {
		return nil, stoker.Errorf(stoker.KindInvalid, "token file", path, "no line for the daemons themselves: add %q", DaemonName+" TOKEN")
	}
	return t, nil
}

// minTokenBytes keeps out tokens that can be guessed over the network.
const minTokenBytes = 16

// add takes one line. Its errors never show the token.
func (t *Tokens) add(line string) error {
	if i := strings.IndexByte(line, '#'); i >= 0 && strings.TrimSpace(line[:i]) == "" {
		return nil
	}
	f := strings.Fields(line)
	switch {
	case len(f) == 0:
		return nil
	case len(f) != 2:
		return errors.New(`want "principal token"`)
	case f[0] == anonymousName:
		return errors.New(anonymousName + " is the name of those without a token: take another")
	case len(f[1]) < minTokenBytes:
		return errors.New("token of " + f[0] + " is shorter than 16 bytes")
	}
	sum := sha256.Sum256([]byte(f[1]))
	if other, twice := t.names[sum]; twice {
		return errors.New("the tokens of " + other + " and " + f[0] + " are the same")
	}
	t.names[sum] = f[0]
	if f[0] == DaemonName && t.own == "" {
		t.own = f[1]
	}
	return nil
}

// Own is the token that a daemon with this file sends to others; "" for nil.
func (t *Tokens) Own() string {
	if t == nil {
		return ""
	}
	return t.own
}

// Authenticate gives each request that came by TCP its principal: without
// tokens, anonymous; with them, the one whose bearer token it carries, and a
// request without a known token is refused. Requests from a Unix socket keep
// the principal that ConnContext gave them.
func Authenticate(t *Tokens, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if t == nil || !PrincipalOf(r.Context()).Anonymous {
			next.ServeHTTP(w, r)
			return
		}
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		name, ok := t.names[sha256.Sum256([]byte(strings.TrimSpace(token)))]
		if !ok || !strings.EqualFold(scheme, "Bearer") {
			w.Header().Set("WWW-Authenticate", "Bearer")
			WriteError(w, stoker.Errorf(stoker.KindDenied, r.Method+" "+r.URL.Path, "", "no known token came with the request: set --token-file"))
			return
		}
		p := Principal{Name: name, UID: -1, Admin: name == DaemonName}
		next.ServeHTTP(w, r.WithContext(WithPrincipal(r.Context(), p)))
	})
}

// ListenTCP opens a TCP listener. Without tokens it refuses any address but
// loopback: whoever reaches it could read every dataset.
func ListenTCP(addr string, t *Tokens) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, stoker.Errorf(stoker.KindInvalid, "listen", addr, "want host:port: %w", err)
	}
	if t == nil && !loopback(host) {
		return nil, stoker.Errorf(stoker.KindInvalid, "listen", addr, "not a loopback address: give a token file, or listen on 127.0.0.1")
	}
	l, err := net.Listen("tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE), errors.Is(err, syscall.EADDRNOTAVAIL): // it may pass
		return nil, stoker.Errorf(stoker.KindBusy, "listen", addr, "another process listens there, or this node does not have the address (yet): %w", err)
	case err != nil:
		return nil, stoker.Errorf(stoker.KindInvalid, "listen", addr, "%w", err)
	}
	if a, ok := l.Addr().(*net.TCPAddr); t == nil && (!ok || !a.IP.IsLoopback()) {
		_ = l.Close() // nothing was accepted on it
		return nil, stoker.Errorf(stoker.KindInvalid, "listen", addr, "is %s, not a loopback address: give a token file", l.Addr())
	}
	return l, nil
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
