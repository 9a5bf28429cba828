package api

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/internal/testenv"
)

func wantKind(t *testing.T, what string, err error, kind stoker.Kind) {
	t.Helper()
	if err == nil || stoker.KindOf(err) != kind {
		t.Errorf("%s: %v has kind %v, want %v", what, err, stoker.KindOf(err), kind)
	}
}

// tokenFile writes a token file with mode 0600 and returns its path.
func tokenFile(t testing.TB, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const (
	daemonToken = "0123456789abcdef-daemon"
	aliceToken  = "0123456789abcdef-alice"
)

func tokens(t testing.TB) *Tokens {
	t.Helper()
	ts, err := LoadTokens(tokenFile(t, "# who may\n\n  stoker "+daemonToken+"\nalice\t"+aliceToken+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	return ts
}

// whoami answers with the principal of the request.
var whoami = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	WriteJSON(w, http.StatusOK, PrincipalOf(r.Context()))
})

// serve serves h on l as the daemons do.
func serve(t testing.TB, l net.Listener, ts *Tokens, h http.Handler) {
	t.Helper()
	s := &http.Server{Handler: Authenticate(ts, h), ConnContext: ConnContext}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l) // it ends with Close
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
}

// who asks a server for the caller's principal, over TCP.
func who(t testing.TB, l net.Listener, authorization string) (Principal, error) {
	t.Helper()
	c, err := newCaller("worker", ClientOptions{URL: "http://" + l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	c.http.Transport = header{authorization}
	return get[Principal](t.Context(), c, answerTimeout, http.MethodGet, "/whoami", nil)
}

// header sends requests with an Authorization header just as it is told.
type header struct{ authorization string }

func (h header) RoundTrip(r *http.Request) (*http.Response, error) {
	if h.authorization != "" {
		r.Header.Set("Authorization", h.authorization)
	}
	return http.DefaultTransport.RoundTrip(r)
}

func TestBearerTokens(t *testing.T) {
	l, err := ListenTCP("127.0.0.1:0", tokens(t))
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, tokens(t), whoami)
	for _, c := range []struct {
		name, authorization string
		want                *Principal // nil = refused
	}{
		{"none", "", nil},
		{"wrong", "Bearer 0123456789abcdef-nobody", nil},
		{"empty", "Bearer ", nil},
		{"a prefix of one", "Bearer " + aliceToken[:len(aliceToken)-1], nil},
		{"one and more", "Bearer " + aliceToken + "x", nil},
		{"the name instead", "Bearer alice", nil},
		{"another scheme", "Basic " + aliceToken, nil},
		{"no scheme", aliceToken, nil},
		{"a user's", "Bearer " + aliceToken, &Principal{Name: "alice", UID: -1}},
		{"scheme in small letters", "bearer " + aliceToken, &Principal{Name: "alice", UID: -1}},
		{"the daemons'", "Bearer " + daemonToken, &Principal{Name: DaemonName, UID: -1, Admin: true}},
	} {
		p, err := who(t, l, c.authorization)
		if c.want == nil {
			wantKind(t, c.name, err, stoker.KindDenied)
		} else if err != nil || p != *c.want {
			t.Errorf("%s: %+v (%v), want %+v", c.name, p, err, *c.want)
		}
	}
}

// Without tokens, who comes over loopback is anonymous, whatever it sends.
func TestLoopbackWithoutTokensIsAnonymous(t *testing.T) {
	l, err := ListenTCP("127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, nil, whoami)
	for _, a := range []string{"", "Bearer " + daemonToken} {
		if p, err := who(t, l, a); err != nil || p != (Principal{Name: "anonymous", UID: -1, Anonymous: true}) {
			t.Errorf("%q: %+v, %v", a, p, err)
		}
	}
	if p := PrincipalOf(t.Context()); !p.Anonymous || p.Admin {
		t.Errorf("a context without a principal: %+v", p)
	}
}

// A port that is taken may be free later: a service manager is to try again.
func TestPortInUse(t *testing.T) {
	l, err := ListenTCP("127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := ListenTCP(l.Addr().String(), nil); stoker.KindOf(err) != stoker.KindBusy {
		t.Errorf("%v", err)
	}
	if _, err := ListenTCP("127.0.0.1:nonsense", nil); stoker.KindOf(err) != stoker.KindInvalid {
		t.Errorf("%v", err)
	}
}

func TestListenTCPNeedsTokensOffLoopback(t *testing.T) {
	for _, c := range []struct {
		addr          string
		without, with bool
	}{
		{addr: "127.0.0.1:0", without: true, with: true},
		{addr: "localhost:0", without: true, with: true},
		{addr: "127.8.9.10:0", without: true, with: true},
		{addr: "0.0.0.0:0", with: true},
		{addr: ":0", with: true},
		{addr: "[::]:0", with: true},
		{addr: "no.such.host.invalid:0"},
		{addr: "127.0.0.1"},
		{addr: ""},
	} {
		for _, ts := range []*Tokens{nil, tokens(t)} {
			want := c.without
			if ts != nil {
				want = c.with
			}
			l, err := ListenTCP(c.addr, ts)
			if l != nil {
				_ = l.Close()
			}
			if (err == nil) != want {
				t.Errorf("%q, tokens %v: %v", c.addr, ts != nil, err)
			} else if err != nil {
				wantKind(t, c.addr, err, stoker.KindInvalid)
			}
		}
	}
}

func TestTokenFiles(t *testing.T) {
	for _, c := range []struct{ name, body, want string }{ // want: part of the error; "" = fine
		{"several of one principal", "stoker " + daemonToken + "\nstoker " + aliceToken, ""},
		{"no end of line", "stoker " + daemonToken, ""},
		{"carriage returns", "stoker " + daemonToken + "\r\n", ""},
		{"empty", "", "no line for the daemons"},
		{"comments alone", "# a\n#b\n", "no line for the daemons"},
		{"no daemons", "alice " + aliceToken, "no line for the daemons"},
		{"token alone", "stoker " + daemonToken + "\n" + aliceToken, ":2: want \"principal token\""},
		{"three words", "stoker " + daemonToken + " x", ":1: want"},
		{"short", "stoker " + daemonToken + "\n\nbob 0123456789abcde", ":3: token of bob is shorter"},
		{"anonymous", "stoker " + daemonToken + "\nanonymous " + aliceToken, ":2: anonymous is the name of those without a token"},
		{"twice", "stoker " + daemonToken + "\nbob " + daemonToken, ":2: the tokens of stoker and bob are the same"},
		{"a line without end", "stoker " + strings.Repeat("x", 100_000), "too long"},
	} {
		ts, err := LoadTokens(tokenFile(t, c.body))
		switch {
		case c.want == "":
			if err != nil || ts.Own() != daemonToken {
				t.Errorf("%s: %v, own %q", c.name, err, ts.Own())
			}
		case err == nil || !strings.Contains(err.Error(), c.want):
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		case strings.Contains(err.Error(), daemonToken) || strings.Contains(err.Error(), aliceToken):
			t.Errorf("%s: the error shows a token: %v", c.name, err)
		default:
			wantKind(t, c.name, err, stoker.KindInvalid)
		}
	}
	if ts, err := LoadTokens(""); ts != nil || err != nil || ts.Own() != "" {
		t.Errorf("no file: %v, %v", ts, err)
	}
	_, err := LoadTokens(filepath.Join(t.TempDir(), "none"))
	wantKind(t, "a file that is not there", err, stoker.KindInvalid)
}

func TestTokenFileThatOthersCanUse(t *testing.T) {
	path := tokenFile(t, "stoker "+daemonToken)
	for mode, fine := range map[os.FileMode]bool{0o600: true, 0o640: true, 0o400: true, 0o644: false, 0o604: false, 0o602: false, 0o777: false} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadTokens(path); (err == nil) != fine {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
}

// The kernel says who is at the other end of a Unix socket; tokens are not
// asked for there. Our own uid is an admin.
func TestUnixSocketKnowsItsCaller(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, tokens(t), whoami)
	c, err := newCaller("worker", ClientOptions{URL: path})
	if err != nil {
		t.Fatal(err)
	}
	p, err := get[Principal](t.Context(), c, answerTimeout, http.MethodGet, "/", nil)
	if want := (Principal{Name: userName(os.Getuid()), UID: os.Getuid(), Admin: true}); err != nil || p != want {
		t.Errorf("%+v (%v), want %+v", p, err, want)
	}
}

// Another uid may connect (the socket is 0666) and is told apart, also where
// it has no name; it is no admin.
func TestUnixSocketOfAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		testenv.Lacks(t, "only root can take another uid")
	}
	dir, err := os.MkdirTemp("", "stoker-api-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, nil, whoami)
	const uid = 54321
	conn := connectAs(t, uid, path)
	c, err := newCaller("worker", ClientOptions{URL: path})
	if err != nil {
		t.Fatal(err)
	}
	c.http.Transport = &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}
	p, err := get[Principal](t.Context(), c, answerTimeout, http.MethodGet, "/", nil)
	if want := (Principal{Name: "uid-54321", UID: uid}); err != nil || p != want {
		t.Errorf("%+v (%v), want %+v", p, err, want)
	}
	c.http.CloseIdleConnections()
}

// connectAs connects to a Unix socket with another effective uid, of one
// thread for the time of the call.
func connectAs(t *testing.T, uid int, path string) net.Conn {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	keep := ^uintptr(0)
	runtime.LockOSThread() // stays locked if the uid cannot be taken back
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
		t.Fatal(errno)
	}
	connected := unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, 0, keep); errno != 0 {
		t.Fatal(errno)
	}
	runtime.UnlockOSThread()
	if connected != nil {
		t.Fatal(connected)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A client sends its token over http, and to nobody that it is redirected to.
func TestClientSendsItsToken(t *testing.T) {
	var got []string
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("followed to another server with %q", r.Header.Get("Authorization"))
	}))
	defer elsewhere.Close()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Header.Get("Authorization"))
		if r.URL.Path == "/v1/jobs" {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
			return
		}
		WriteJSON(w, http.StatusOK, VersionInfo{Version: "1"})
	}))
	defer s.Close()
	for i, file := range []string{"# mine\n" + aliceToken + "\n", "alice " + aliceToken} {
		c, err := NewController(ClientOptions{URL: s.URL + "/", TokenFile: tokenFile(t, file)})
		if err != nil {
			t.Fatal(err)
		}
		if v, err := c.Version(t.Context()); err != nil || v.Version != "1" || got[len(got)-1] != "Bearer "+aliceToken {
			t.Errorf("file %d: %v, sent %q", i, err, got)
		}
		if _, err := c.Jobs(t.Context()); err == nil {
			t.Error("a redirect was followed")
		}
	}
	for name, body := range map[string]string{"empty": "", "comment": "# x\n", "three words": "a b c"} {
		_, err := NewController(ClientOptions{URL: s.URL, TokenFile: tokenFile(t, body)})
		wantKind(t, name, err, stoker.KindInvalid)
	}
}
