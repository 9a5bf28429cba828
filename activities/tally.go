package activities

import (
	"bytes"
	"cmp"
	"slices"

	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
)

// tally joins what workers have, block by block.
type tally struct {
	m       *manifest.Manifest
	present [][]byte          // by shard: bitmap; nil = nothing
	copies  []uint16          // by shard: workers that have all of it that is counted
	want    int               // that are to have it
	only    *Chosen           // what is counted; nil: all
	corrupt []map[int]bool    // by shard: blocks that some worker found wrong
	reasons map[string]reason // by path
	sums    api.Checksums
	workers []api.CertificateWorker
	wrong   map[api.WrongFile]bool
	nodes   onNodes

	gone       int64 // see Verified
	away       []int
	refillable map[string]bool // failed paths of wrong bytes that are out of use: another load brings right ones
}

type reason struct{ kind, text string }

func newTally(m *manifest.Manifest) *tally {
	return &tally{m: m, present: make([][]byte, m.Shards()), copies: make([]uint16, m.Shards()), want: 1, corrupt: make([]map[int]bool, m.Shards()), reasons: map[string]reason{},
		wrong: map[api.WrongFile]bool{}, refillable: map[string]bool{}}
}

// add counts what a worker says it has.
func (t *tally) add(worker string, r *api.VerifyReport) {
	w := api.CertificateWorker{Worker: worker}
	for _, s := range r.Shards {
		if int(s.Shard) >= len(t.present) {
			continue
		}
		have := t.shard(worker, &s)
		w.WrongBlocks += len(s.Corrupt)
		if blocks, bytes := t.count(s.Shard, have); blocks > 0 {
			w.Shards, w.Blocks, w.Bytes = w.Shards+1, w.Blocks+blocks, w.Bytes+bytes
		}
	}
	w.Whole = w.Bytes == t.m.Bytes()
	if w.Blocks > 0 || w.WrongBlocks > 0 {
		t.workers = append(t.workers, w)
		slices.SortFunc(t.workers, func(a, b api.CertificateWorker) int { return cmp.Compare(a.Worker, b.Worker) })
	}
	t.sums.Blocks += w.Blocks
	t.sums.ReadBlocks, t.sums.ReadBytes = t.sums.ReadBlocks+r.ReadBlocks, t.sums.ReadBytes+r.ReadBytes
	for _, f := range r.Failed {
		if _, known := t.reasons[f.Path]; !known {
			t.reasons[f.Path] = reason{f.Kind, f.Reason}
		}
	}
}

// shard enters a worker's blocks of one shard, and returns them.
func (t *tally) shard(worker string, s *api.ShardReport) (have []byte) {
	blocks := int(t.m.Shard(s.Shard).Blocks)
	if t.present[s.Shard] == nil {
		t.present[s.Shard] = make([]byte, (blocks+7)/8)
	}
	if have = bytes.Clone(s.Present); s.Present == nil {
		have = bytes.Repeat([]byte{0xff}, (blocks+7)/8)
	}
	for _, b := range s.Corrupt {
		if b < 0 || b >= blocks {
			continue
		}
		if b/8 < len(have) {
			have[b/8] &^= 1 << (b % 8)
		}
		if t.corrupt[s.Shard] == nil {
			t.corrupt[s.Shard] = map[int]bool{}
		}
		t.corrupt[s.Shard][b] = true
	}
	if len(s.Corrupt) > 0 {
		t.name(worker, s)
	}
	if t.enough(s.Shard, have) {
		t.copies[s.Shard]++
	}
	t.nodes.add(worker, s.Shard, have, blocks)
	for i := range min(len(have), len(t.present[s.Shard])) {
		t.present[s.Shard][i] |= have[i]
	}
	return have
}

// name notes the objects of which a worker has wrong blocks.
func (t *tally) name(worker string, s *api.ShardReport) {
	for _, mem := range t.m.Members(s.Shard, nil) {
		first, end := int(mem.FirstBlock), int(mem.FirstBlock)+manifest.BlocksOf(mem.Bytes)
		if slices.ContainsFunc(s.Corrupt, func(b int) bool { return b >= first && b < end }) {
			t.wrong[api.WrongFile{Path: api.EscapePath(t.m.Path(mem.Row)), Worker: worker}] = true
		}
	}
}

func (t *tally) wrongFiles() (out []api.WrongFile) {
	for w := range t.wrong {
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b api.WrongFile) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Worker, b.Worker))
	})
	return out
}

// count adds up the blocks of a bitmap and their bytes.
func (t *tally) count(n uint32, have []byte) (blocks, bytes int64) {
	for _, mem := range t.m.Members(n, nil) {
		first := int(mem.FirstBlock)
		for b := first; b < first+manifest.BlocksOf(mem.Bytes); b++ {
			if b/8 < len(have) && have[b/8]&(1<<(b%8)) != 0 {
				blocks, bytes = blocks+1, bytes+blockBytes(mem, b)
			}
		}
	}
	return blocks, bytes
}
