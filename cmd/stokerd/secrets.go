package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"
)

// outside are settings that only the environment has: a secret on a command
// line can be read by every user, and a config file is often readable.
var outside = map[string]string{
	"STOKER_REDIS_PASSWORD":   "password for Redis, instead of --redis-password-file",
	"STOKER_TEMPORAL_API_KEY": "API key for Temporal (controller), instead of --temporal-api-key-file",
}

// secret finds a secret in a file or in a variable. The file is read again at
// each use, so that it can be replaced while the daemon runs; nil = none.
func secret(flag, path, variable string) (func() (string, error), error) {
	value := os.Getenv(variable)
	switch {
	case value != "" && path != "":
		return nil, usage{fmt.Errorf("--%s and %s are both set: give one", flag, variable)}
	case value != "":
		if err := os.Unsetenv(variable); err != nil { // no child needs it
			return nil, err
		}
		return func() (string, error) { return value, nil }, nil
	case path == "":
		return nil, nil
	}
	read := func() (string, error) {
		if err := private(path); err != nil {
			return "", fmt.Errorf("%s: %w", flag, err)
		}
		body, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("%s: %w", flag, err)
		}
		v := strings.TrimSpace(string(body))
		if v == "" || strings.ContainsAny(v, "\r\n") {
			return "", fmt.Errorf("%s: %s: want one line with nothing but the secret", flag, path)
		}
		return v, nil
	}
	if _, err := read(); err != nil {
		return nil, usage{err}
	}
	return read, nil
}

// private refuses files that every user can read.
func private(path string) error {
	st, err := os.Stat(path)
	if err == nil && st.Mode().Perm()&0o007 != 0 {
		err = fmt.Errorf("%s: every user can read it: chmod 0640 or stricter", path)
	}
	return err
}

// tlsFiles are the files of a TLS client.
type tlsFiles struct{ of, ca, cert, key string }

func (f *tlsFiles) add(set *pflag.FlagSet, of, what string) {
	f.of = of
	set.StringVar(&f.ca, of+"-tls-ca", "", "file with the CAs that may have signed the certificate of "+what+" (default the system's)")
	set.StringVar(&f.cert, of+"-tls-cert", "", "file with this daemon's certificate for "+what+", if it wants one")
	set.StringVar(&f.key, of+"-tls-key", "", "file with the key of --"+of+"-tls-cert")
}

func (f *tlsFiles) given() bool { return f.ca != "" || f.cert != "" || f.key != "" }

// config reads the files. The certificate is read again at each connection, so
// that it can be renewed while the daemon runs.
func (f *tlsFiles) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.ca != "" {
		pem, err := os.ReadFile(f.ca)
		if err != nil {
			return nil, usage{fmt.Errorf("%s-tls-ca: %w", f.of, err)}
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, usage{fmt.Errorf("%s-tls-ca: %s holds no certificate in PEM", f.of, f.ca)}
		}
	}
	if (f.cert == "") != (f.key == "") {
		return nil, usage{fmt.Errorf("--%s-tls-cert and --%s-tls-key go together", f.of, f.of)}
	}
	if f.cert == "" {
		return c, nil
	}
	load := func() (*tls.Certificate, error) {
		if err := private(f.key); err != nil {
			return nil, fmt.Errorf("%s-tls-key: %w", f.of, err)
		}
		pair, err := tls.LoadX509KeyPair(f.cert, f.key)
		if err != nil {
			return nil, fmt.Errorf("%s-tls-cert: %w", f.of, err)
		}
		return &pair, nil
	}
	if _, err := load(); err != nil {
		return nil, usage{err}
	}
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	return c, nil
}

// needsTLS refuses files that would be ignored.
func (f *tlsFiles) needsTLS(on bool, how string) error {
	if f.given() && !on {
		return usage{errors.New("--" + f.of + "-tls-… is given, but no TLS: " + how)}
	}
	return nil
}
