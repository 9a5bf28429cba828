package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"stoker.dev/cache/placement"
	"stoker.dev/internal/testenv"
)

const password = "correct-horse-battery"

func secretFile(t *testing.T, name, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// indexWith registers a worker in the Redis that flags and environment say.
func indexWith(t *testing.T, args ...string) error {
	t.Helper()
	var f sharedFlags
	cmd := &cobra.Command{Use: "worker"}
	f.add(cmd)
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	index, err := f.openIndex(slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer index.Close()
	return index.Register(t.Context(), placement.Worker{ID: "w", Incarnation: 1}, time.Minute)
}

// Redis is reached with a password from a file or the environment, and by TLS
// with the files of the flags. No error shows the password.
func TestRedisWithCredentials(t *testing.T) {
	c := testenv.MakeCerts(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	safe := l.Addr().String()
	_ = l.Close()
	_, port, _ := net.SplitHostPort(safe)
	plain := testenv.StartRedis(t, "--requirepass", password, "--tls-port", port, "--tls-cert-file", c.ServerCert, "--tls-key-file", c.ServerKey, "--tls-ca-cert-file", c.CA)
	file := secretFile(t, "password", password+"\n")
	files := []string{"--redis-tls-ca", c.CA, "--redis-tls-cert", c.ClientCert, "--redis-tls-key", c.ClientKey}
	over := append([]string{"--redis", "rediss://" + safe}, files...)
	if err := indexWith(t, "--redis", plain, "--redis-password-file", file); err != nil {
		t.Errorf("file: %v", err)
	}
	if err := indexWith(t, append(over, "--redis-password-file", file)...); err != nil {
		t.Errorf("TLS: %v", err)
	}
	if err := indexWith(t, over...); err == nil {
		t.Error("no password was needed")
	}
	if err := indexWith(t, "--redis", "rediss://"+safe, "--redis-tls-ca", c.CA, "--redis-password-file", file); err == nil {
		t.Error("no certificate was needed")
	}
	t.Run("environment", func(t *testing.T) {
		t.Setenv("STOKER_REDIS_PASSWORD", password)
		if err := indexWith(t, "--redis", plain); err != nil || os.Getenv("STOKER_REDIS_PASSWORD") != "" {
			t.Errorf("%v; children see %q", err, os.Getenv("STOKER_REDIS_PASSWORD"))
		}
	})
	wrong := secretFile(t, "wrong", password+"x")
	if err := indexWith(t, "--redis", plain, "--redis-password-file", wrong); err == nil || strings.Contains(err.Error(), password) {
		t.Errorf("wrong password: %v", err)
	}
}

// A password that is replaced holds for the next connection.
func TestPasswordIsReadAgain(t *testing.T) {
	address := testenv.StartRedis(t, "--requirepass", "first-password")
	file := secretFile(t, "password", "first-password")
	var f sharedFlags
	f.redis, f.redisPasswordFile = address, file
	index, err := f.openIndex(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer index.Close()
	if _, err := index.Workers(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(address)
	cli := func(args ...string) {
		cmd := exec.Command(testenv.Program(t, "redis-cli"), append([]string{"-p", port}, args...)...)
		cmd.Env = append(os.Environ(), "REDISCLI_AUTH=first-password")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	}
	if err := os.WriteFile(file, []byte("second-password"), 0o600); err != nil {
		t.Fatal(err)
	}
	cli("config", "set", "requirepass", "second-password")
	cmd := exec.Command(testenv.Program(t, "redis-cli"), "-p", port, "client", "kill", "type", "normal")
	cmd.Env = append(os.Environ(), "REDISCLI_AUTH=second-password")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if _, err := index.Workers(t.Context()); err != nil {
		if _, err = index.Workers(t.Context()); err != nil { // the first may have met the connection that was cut
			t.Errorf("with the second password: %v", err)
		}
	}
}

// Whatever is wrong with secrets and TLS files is exit 2 before anything runs.
func TestSecretsThatAreWrong(t *testing.T) {
	c := testenv.MakeCerts(t)
	open := secretFile(t, "open", password)
	key := secretFile(t, "key", "x")
	for _, p := range []string{open, key} {
		if err := os.Chmod(p, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const r = "--redis=rediss://127.0.0.1:1"
	for name, args := range map[string][]string{
		"readable by all":   {r, "--redis-password-file", open},
		"missing":           {r, "--redis-password-file", "/none"},
		"empty":             {r, "--redis-password-file", secretFile(t, "empty", "\n")},
		"two lines":         {r, "--redis-password-file", secretFile(t, "two", password+"\n"+password)},
		"in the address":    {"--redis=redis://u:" + password + "@127.0.0.1:1"},
		"no CA":             {r, "--redis-tls-ca", "/none"},
		"no PEM":            {r, "--redis-tls-ca", secretFile(t, "pem", "x")},
		"cert without key":  {r, "--redis-tls-cert", c.ClientCert},
		"foreign key":       {r, "--redis-tls-cert", c.ClientCert, "--redis-tls-key", c.ServerKey},
		"key for all":       {r, "--redis-tls-cert", c.ClientCert, "--redis-tls-key", key},
		"TLS files, no TLS": {"--redis=127.0.0.1:1", "--redis-tls-ca", c.CA},
	} {
		if err := indexWith(t, args...); err == nil || exitCode(err) != 2 || strings.Contains(err.Error(), password) {
			t.Errorf("%s: %v", name, err)
		}
	}
	t.Setenv("STOKER_REDIS_PASSWORD", password)
	if err := indexWith(t, r, "--redis-password-file", secretFile(t, "p", password)); err == nil || exitCode(err) != 2 {
		t.Errorf("twice: %v", err)
	}
}

// frontend is a Temporal that wants TLS and a client's certificate, answers
// nothing, and keeps the keys that came.
func frontend(t *testing.T, c testenv.Certs) (address string, keys *atomic.Pointer[string]) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(c.ServerCert, c.ServerKey)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(c.CA)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	keys = new(atomic.Pointer[string])
	s := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert})),
		grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
			md, _ := metadata.FromIncomingContext(stream.Context())
			all := strings.Join(md.Get("authorization"), ",")
			keys.Store(&all)
			return status.Error(codes.PermissionDenied, "seen")
		}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return l.Addr().String(), keys
}

// Temporal is reached by TLS, with a client's certificate and an API key that
// is read for each request.
func TestTemporalWithCredentials(t *testing.T) {
	c := testenv.MakeCerts(t)
	address, keys := frontend(t, c)
	f := controllerFlags{temporal: address, namespace: "n", apiKeyFile: secretFile(t, "key", "first-key")}
	f.temporalTLS = tlsFiles{"temporal", c.CA, c.ClientCert, c.ClientKey}
	flows, err := f.flows(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer flows.Close()
	for _, key := range []string{"first-key", "second-key"} {
		if err := os.WriteFile(f.apiKeyFile, []byte(key+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := flows.Server(t.Context()); err == nil || !strings.Contains(err.Error(), "seen") || strings.Contains(err.Error(), key) {
			t.Errorf("%v", err)
		}
		if got := keys.Load(); got == nil || *got != "Bearer "+key {
			t.Errorf("the server saw %v", got)
		}
	}
	keys.Store(nil)
	for name, f := range map[string]controllerFlags{
		"no certificate": {temporal: address, temporalTLS: tlsFiles{of: "temporal", ca: c.CA}}, "unknown CA": {temporal: address, secure: true}, "no TLS": {temporal: address},
		"another name": {temporal: address, temporalName: "other.example", temporalTLS: tlsFiles{"temporal", c.CA, c.ClientCert, c.ClientKey}},
	} {
		flows, err := f.flows(slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := flows.Server(t.Context()); err == nil || keys.Load() != nil {
			t.Errorf("%s: %v", name, err)
		}
		flows.Close()
	}
	for name, f := range map[string]controllerFlags{
		"address": {temporal: "temporal"}, "key for all": {temporal: address, apiKeyFile: "/none"}, "cert alone": {temporal: address, temporalTLS: tlsFiles{of: "temporal", cert: c.ClientCert}},
	} {
		_, err := f.flows(slog.New(slog.DiscardHandler))
		if u := (usage{}); err == nil || exitCode(err) != 2 && !errors.As(err, &u) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
