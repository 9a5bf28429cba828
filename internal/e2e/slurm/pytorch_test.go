package slurm

import (
	"crypto/sha256"
	_ "embed"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

//go:embed testdata/train.py
var trainer []byte

// A DataLoader of the PyTorch that Debian has, with shuffling and four processes that read,
// trains for two epochs from the job's mount. It sees each file once an epoch, with
// the bytes of the source, which were fetched once and before the job began.
func pytorch(t *testing.T, r *rig) {
	const files, size, classes = 400, 40_000, 4
	noise := rand.NewChaCha8([32]byte{5})
	var all [sha256.Size]byte
	for i := range files {
		body := make([]byte, size+i)
		_, _ = noise.Read(body)
		for k := range body {
			body[k] %= byte(64*(i%classes+1) - 1) // what there is to learn
		}
		for k, b := range sha256.Sum256(body) {
			all[k] ^= b
		}
		p := filepath.Join(r.root, "data", "torch", fmt.Sprintf("class%d", i%classes), fmt.Sprintf("%05d.bin", i))
		must(t, os.MkdirAll(filepath.Dir(p), 0o755))
		must(t, os.WriteFile(p, body, 0o644))
	}
	r.must("dataset", "add", "torch", "s3://data/torch", "--endpoint", r.proxy.URL(), "--path-style")
	must(t, os.WriteFile(r.at("out", "train.py"), trainer, 0o644))
	r.proxy.Reset()
	id := r.submit("#STOKER dataset=torch onmiss=wait\nexec /usr/bin/python3 -W ignore "+r.at("out", "train.py")+` "$STOKER_MOUNT"`, "-w", "worker-1")
	r.inState(id, "COMPLETED")
	lines := strings.Split(strings.TrimSpace(r.output(id)), "\n")
	if len(lines) != 3 {
		t.Fatalf("the job printed %q", lines)
	}
	for epoch, line := range lines[:2] {
		if want := fmt.Sprintf("epoch %d: %d files, %x", epoch, files, all); line != want {
			t.Errorf("the job printed %q, want %q", line, want)
		}
	}
	var right float64
	if _, err := fmt.Sscanf(lines[2], "right: %f", &right); err != nil || right < 0.9 {
		t.Errorf("it has learnt %q (%v)", lines[2], err)
	}
	if want := int64(files*size + files*(files-1)/2); r.proxy.Bytes() != want {
		t.Errorf("%d bytes were fetched for %d", r.proxy.Bytes(), want)
	}
	r.released(id)
}
