package cache

import (
	"bytes"
	"context"
	"io"
	"sync"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
)

// drip is a store whose object comes a block at a time: each waits for its turn.
type drip struct {
	ufs.FS
	turns chan struct{}
}

func (d drip) Open(ctx context.Context, key string, want ufs.Version, off, length int64) (io.ReadCloser, error) {
	body, err := d.FS.Open(ctx, key, want, off, length)
	if err != nil {
		return nil, err
	}
	return dripping{body, d.turns}, nil
}

type dripping struct {
	io.ReadCloser
	turns chan struct{}
}

func (d dripping) Read(p []byte) (int, error) {
	<-d.turns
	return io.ReadFull(d.ReadCloser, p)
}

// Who waits for a block gets it when it has come, whatever else of its object is
// still on its way, and each waiter the part that he asked for.
func TestWaitersGetTheirOwnBlock(t *testing.T) {
	c := newCluster(t, 1, 1<<30)
	const blocks = 4
	want := c.put("a", blocks*stoker.BlockBytes, 1)
	d := drip{c.ufs, make(chan struct{})}
	c.openUFS = func() ufs.FS { return d }
	n := c.nodes[0]
	s := n.open(t, c.freeze())
	row := rowOf(t, s, "a")
	came := make([]sync.WaitGroup, blocks)
	read := func(block, at, length int) {
		came[block].Add(1)
		go func() {
			defer came[block].Done()
			got, off := make([]byte, length), block*stoker.BlockBytes+at
			if k, err := s.ReadAt(context.Background(), row, got, int64(off)); err != nil || !bytes.Equal(got[:k], want[off:off+length]) {
				t.Errorf("%d bytes at %d: %d, %v, or wrong ones", length, off, k, err)
			}
		}()
	}
	read(0, 0, 1)
	waitFor(t, "the object is on its way", func() bool { return s.underWay() != nil })
	for block := range blocks {
		read(block, 0, stoker.BlockBytes)
		read(block, 1000, 7)
		read(block, stoker.BlockBytes-5, 5)
	}
	f := s.underWay()
	waitFor(t, "all wait", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.waiting) == 3*blocks+1
	})
	for block := range blocks {
		d.turns <- struct{}{}
		came[block].Wait() // the next ones have not come
	}
	n.settle(t)
	if _, asked := c.ufs.counted(); asked != int64(len(want)) {
		t.Errorf("%d bytes were asked for, of %d", asked, len(want))
	}
}

// lateFS is a store whose requests take their time to end once they are cancelled.
type lateFS struct {
	*countingFS
	end chan struct{}
}

func (f *lateFS) Open(ctx context.Context, key string, v ufs.Version, off, n int64) (io.ReadCloser, error) {
	r, err := f.countingFS.Open(ctx, key, v, off, n)
	if err != nil {
		<-f.end
	}
	return r, err
}

// Who comes for what another one's flight was to bring, which that one stopped when he
// gave up, does not give up with him.
func TestWhoJoinsAStoppedFlightGoesOn(t *testing.T) {
	c := newCluster(t, 1, 1<<30)
	c.fillUFS(4, 1, 0)
	id := c.freeze()
	late := &lateFS{c.ufs, make(chan struct{})}
	c.openUFS = func() ufs.FS { return late }
	c.ufs.mu.Lock()
	c.ufs.hold = make(chan struct{})
	c.ufs.mu.Unlock()
	s, err := c.nodes[0].cache.Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	row, _ := s.Manifest().LookupPath("train/00/f00000.bin")
	read := func(ctx context.Context) <-chan error {
		ended := make(chan error, 1)
		go func() {
			_, err := s.ReadAt(ctx, row, make([]byte, 10), 0)
			ended <- err
		}()
		for range time.Tick(time.Millisecond) {
			if n, _ := c.ufs.counted(); n == 1 && c.nodes[0].cache.waiting() == 1 {
				return ended
			}
		}
		return nil
	}
	ctx, giveUp := context.WithCancel(t.Context())
	first := read(ctx)
	giveUp()
	if err := <-first; err != context.Canceled {
		t.Fatalf("who gave up got %v", err)
	}
	close(c.ufs.hold)
	second := read(t.Context())
	close(late.end)
	if err := <-second; err != nil {
		t.Errorf("who came then got %v", err)
	}
}
