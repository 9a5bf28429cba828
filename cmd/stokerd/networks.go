package main

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"sync"
)

// networks is a flag that says where workers may be: networks in CIDR form,
// addresses, names, and ends of names that begin with a dot. Empty: anywhere.
type networks struct {
	text   string
	within []netip.Prefix
	names  []string // lower case; ".x" is every name that ends so
}

// Set implements pflag.Value.
func (n *networks) Set(s string) error {
	next := networks{text: s}
	for part := range strings.SplitSeq(s, ",") {
		part = strings.ToLower(strings.TrimSpace(part))
		if part == "" {
			continue
		}
		if p, err := netip.ParsePrefix(part); err == nil {
			next.within = append(next.within, p.Masked())
		} else if a, err := netip.ParseAddr(part); err == nil {
			next.within = append(next.within, netip.PrefixFrom(a, a.BitLen()))
		} else if strings.ContainsAny(part, "/:*@ ") || part == "." {
			return fmt.Errorf("%q is no network: write 10.0.0.0/8, 10.0.0.7, node7.example or .example", part)
		} else {
			next.names = append(next.names, part)
		}
	}
	*n = next
	return nil
}

// String implements pflag.Value.
func (n *networks) String() string { return n.text }

// Type implements pflag.Value.
func (n *networks) Type() string { return "networks" }

// has reports whether the base URL of a worker lies within. A name is not
// looked up: what it means could change before it is used.
func (n *networks) has(address string) bool {
	u, err := url.Parse(address)
	if err != nil || u.User != nil || u.Scheme != "http" && u.Scheme != "https" {
		return false
	}
	host := strings.ToLower(u.Hostname())
	if a, err := netip.ParseAddr(host); err == nil {
		for _, p := range n.within {
			if p.Contains(a.Unmap()) {
				return true
			}
		}
		return false
	}
	for _, name := range n.names {
		if host == name || name[0] == '.' && strings.HasSuffix(host, name) && len(host) > len(name) {
			return true
		}
	}
	return false
}

// own checks, as far as flags say it, that others will find a worker that
// listens at listen and is advertised as a base URL.
func (n *networks) own(advertise, listen string) error {
	how := "--advertise"
	if advertise == "" {
		host, _, err := net.SplitHostPort(listen)
		a, perr := netip.ParseAddr(host)
		if err == nil && (host == "" || perr == nil && a.IsUnspecified()) {
			return usage{fmt.Errorf("--listen %s says nowhere how others reach this worker: give --advertise http://HOST:PORT", listen)}
		}
		how, advertise = "--listen", "http://"+listen
	}
	if len(n.within)+len(n.names) > 0 && !n.has(advertise) {
		return usage{fmt.Errorf("%s %s lies outside of --worker-networks %s: nobody would speak to this worker", how, advertise, n.text)}
	}
	return nil
}

// accept is has for the index, which tells of each address that is refused
// once, and of no more than a few; nil = anywhere.
func (n *networks) accept(log *slog.Logger) func(string) bool {
	if len(n.within) == 0 && len(n.names) == 0 {
		return nil
	}
	var mu sync.Mutex
	told := map[string]bool{}
	return func(address string) bool {
		if n.has(address) {
			return true
		}
		mu.Lock()
		defer mu.Unlock()
		if !told[address] && len(told) < 100 {
			told[address] = true
			log.Warn("a worker is registered outside of --worker-networks: it is not used", "address", address, "networks", n.text)
		}
		return false
	}
}
