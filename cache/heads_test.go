package cache

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"stoker.dev"
)

// begun is how many files may be begun, and no more, before a begin brings less.
const begun = 64 + 8

// manyFiles are keys in the order of the listing.
func manyFiles(n int, size int64) (keys []string, sizes map[string]int64) {
	sizes = map[string]int64{}
	for k := range n {
		keys = append(keys, fmt.Sprintf("%04d", k))
		sizes[keys[k]] = size
	}
	return keys, sizes
}

// at reads files by so many readers at once; each takes the next one.
func (x *trace) at(readers int, keys []string, read func(y *trace, key string)) {
	todo := make(chan string, len(keys))
	for _, key := range keys {
		todo <- key
	}
	close(todo)
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			y := *x
			y.want = nil
			for key := range todo {
				read(&y, key)
			}
		})
	}
	wg.Wait()
}

// Of files of which somebody reads only the headers, as listed or not, one or many at once,
// windows come until so many were begun; then the blocks that are read, by one request.
func TestHeadersBringWhatIsRead(t *testing.T) {
	const files = 200
	for _, r := range []struct {
		readers      int
		shuffled     bool
		sizes        []int64 // of READs
		blocks, room int64
	}{
		{1, false, []int64{4 << 10}, 1, 4 << 30},
		{1, true, []int64{16 << 10, 48 << 10}, 1, 4 << 30},
		{1, false, []int64{64 << 10, 256 << 10}, 2, 4 << 30}, // as the kernel reads ahead
		{1, true, []int64{4 << 10}, 1, 8 << 20},              // without space
		{64, false, []int64{4 << 10}, 1, 4 << 30},
		{64, true, []int64{4 << 10, 60 << 10}, 1, 4 << 30},
	} {
		t.Run(fmt.Sprintf("%d readers, shuffled %t, %v", r.readers, r.shuffled, r.sizes), func(t *testing.T) {
			keys, sizes := manyFiles(files, 10<<20)
			x := newTrace(t, r.room, 64<<20, sizes)
			if r.shuffled {
				rand.New(rand.NewPCG(1, 2)).Shuffle(files, func(i, k int) { keys[i], keys[k] = keys[k], keys[i] })
			}
			x.at(r.readers, keys, func(y *trace, key string) {
				off := int64(0)
				for _, size := range r.sizes {
					y.read(key, off, size)
					off += size
				}
			})
			var before [2]int64
			requests, bytes := x.cost(&before)
			least := begun*window + (files-begun)*r.blocks*stoker.BlockBytes
			most := least + int64(r.readers-1)*window
			if requests != files || bytes < least || bytes > most {
				t.Errorf("%d requests for %d bytes of %d files, want %d to %d", requests, bytes, files, least, most)
			}
		})
	}
}

// Who reads whole files has a window when he begins one, also where 64 begin each its own
// before the first of them reads on; one reader also without space.
func TestWholeFilesKeepTheirFirstWindows(t *testing.T) {
	const size = 5 << 20
	for _, r := range []struct {
		readers, files int
		room, ahead    int64
	}{{1, begun + 20, 2 << 30, -1}, {1, begun + 20, 8 << 20, -1}, {64, 2 * 64, 2 << 30, -1}, {1, begun + 20, 2 << 30, 64 << 20}} {
		t.Run(fmt.Sprintf("%d readers, room for %d, %d ahead", r.readers, r.room, r.ahead), func(t *testing.T) {
			keys, sizes := manyFiles(r.files, size)
			x := newTrace(t, r.room, r.ahead, sizes)
			header := func(y *trace, key string) { y.read(key, 0, 4<<10) }
			rest := func(y *trace, key string) {
				for off := int64(4 << 10); off < size; off += stoker.BlockBytes {
					y.read(key, off, 4<<10)
				}
			}
			for round := range slices.Chunk(keys, r.readers) {
				x.at(r.readers, round, header)
				x.at(r.readers, round, rest)
			}
			var before [2]int64
			requests, bytes := x.cost(&before)
			if most := int64(2 * len(keys)); requests > most || requests < most && r.ahead < 0 || bytes != size*int64(len(keys)) {
				t.Errorf("%d requests for %d bytes of %d files", requests, bytes, len(keys))
			}
			if n := x.s.heads.Blocks(); n != demandWindow {
				t.Errorf("a begin brings %d blocks", n)
			}
		})
	}
}

// After headers one that is longer takes one request more, and the next ones none; so does a
// file that is read on.
func TestFirstWindowsComeAgain(t *testing.T) {
	const size = 5 << 20
	keys, sizes := manyFiles(100, size)
	x := newTrace(t, 1<<30, -1, sizes)
	for _, key := range keys[:begun+4] {
		x.read(key, 0, 4<<10)
	}
	var before [2]int64
	x.cost(&before)
	for i, key := range keys[begun+4 : begun+8] {
		x.read(key, 0, 4<<10)
		x.read(key, stoker.BlockBytes, 4<<10)
		want := [2]int64{1, 2 * stoker.BlockBytes}
		if i == 0 {
			want = [2]int64{2, window}
		}
		if requests, bytes := x.cost(&before); want != [2]int64{requests, bytes} {
			t.Fatalf("header %d: %d requests for %d bytes, want %v", i, requests, bytes, want)
		}
	}
	for i, key := range keys[begun+8:] {
		for off := int64(0); off < size; off += stoker.BlockBytes {
			x.read(key, off, 4<<10)
		}
		want := int64(2)
		if i == 0 {
			want = 3
		}
		if requests, bytes := x.cost(&before); requests != want || bytes != size {
			t.Fatalf("file %d: %d requests for %d bytes, want %d", i, requests, bytes, want)
		}
	}
}
