package main

import (
	"log/slog"
	"strings"
	"testing"
)

func TestNetworks(t *testing.T) {
	var n networks
	if err := n.Set(" 10.1.0.0/16, 192.168.7.9,fd00::/8, Node7.Example , .nodes.example,"); err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]bool{
		"http://10.1.2.3:7070": true, "https://10.1.0.0:1": true, "http://192.168.7.9:1": true, "http://[fd00::1]:1": true, "http://[::ffff:10.1.2.3]:1": true,
		"http://node7.example:1": true, "http://NODE7.example:1": true, "http://a.b.nodes.example:1": true,
		"http://10.2.2.3:7070": false, "http://192.168.7.8:1": false, "http://node8.example:1": false, "http://nodes.example:1": false,
		"http://evilnodes.example:1": false, "http://a.nodes.example.evil:1": false, "http://10.1.2.3@evil:1": false, "http://evil/10.1.2.3": false, "ftp://10.1.2.3:1": false,
		"10.1.2.3:7070": false, "": false, "http://": false, "http://0x0a010203:1": false,
	} {
		if got := n.has(address); got != want {
			t.Errorf("%q: %v", address, got)
		}
	}
	for _, bad := range []string{"10.0.0.0/33", "http://x", "a b", "*.x", "."} {
		before := n.text
		if err := n.Set(bad); err == nil || n.text != before {
			t.Errorf("%q was taken", bad)
		}
	}
	var said strings.Builder
	accept := n.accept(slog.New(slog.NewTextHandler(&said, nil)))
	for range 2 {
		if accept("http://evil:1") {
			t.Error("a stranger is accepted")
		}
	}
	if !accept("http://10.1.2.3:1") || strings.Count(said.String(), "http://evil:1") != 1 {
		t.Errorf("said %q", said.String())
	}
	if err := n.Set(""); err != nil || n.accept(nil) != nil {
		t.Errorf("an empty list: %v", err)
	}
}

// A worker that nobody could find does not start.
func TestWorkerSaysWhereItIs(t *testing.T) {
	for _, c := range []struct {
		networks, advertise, listen string
		ok                          bool
	}{
		{"", "", "127.0.0.1:0", true}, {"", "", "10.0.0.7:7070", true}, {"", "", "node7:7070", true}, {"", "http://node7:7070", "0.0.0.0:7070", true},
		{"10.0.0.0/8", "", "10.0.0.7:7070", true}, {".x", "http://node7.x:7070", ":7070", true},
		{"", "", "0.0.0.0:7070", false}, {"", "", "[::]:7070", false}, {"", "", ":7070", false},
		{"10.0.0.0/8", "", "127.0.0.1:0", false}, {"10.0.0.0/8", "http://node7:7070", "10.0.0.7:7070", false},
	} {
		var n networks
		if err := n.Set(c.networks); err != nil {
			t.Fatal(err)
		}
		if err := n.own(c.advertise, c.listen); (err == nil) != c.ok || err != nil && exitCode(err) != 2 {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
