package activities

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
)

// VerifyInput says what to count, and what loading it has cost.
type VerifyInput struct {
	Dataset     string
	Generation  int
	Manifest    stoker.ID
	UFSRequests int64 `json:",omitempty"`
	UFSBytes    int64 `json:",omitempty"`
	Refetched   api.Refetched
	Started     time.Time
}

// Verified is a stored certificate, in brief.
type Verified struct {
	Certificate     stoker.ID
	State           string
	Objects         int64
	ResidentObjects int64
	Kind            string // of the error that State Failed stands for
	Message         string
	Again           bool // what is missing was not refused by the store: another round may bring it
}

// Verify counts what is on the workers' disks against the manifest and stores
// the certificate.
func (a *Activities) Verify(ctx context.Context, in VerifyInput) (Verified, error) {
	c, err := a.Certify(ctx, in, false)
	if err != nil {
		return Verified{}, ToTemporal(err)
	}
	c.Seconds = time.Since(in.Started).Seconds()
	body, err := json.Marshal(c)
	if err != nil {
		return Verified{}, ToTemporal(stoker.Errorf(stoker.KindInternal, "verify", in.Dataset, "%w", err))
	}
	id, err := a.o.Store.PutBlob(ctx, "certificates", body)
	if err != nil {
		return Verified{}, ToTemporal(err)
	}
	v := Verified{Certificate: id, State: c.State, Objects: c.Objects, ResidentObjects: c.ResidentObjects}
	if c.State != api.CertificateReady {
		err := stoker.Errorf(stoker.KindIncomplete, "preload", in.Dataset, "%d of %d objects are not resident", c.Objects-c.ResidentObjects, c.Objects)
		v.Kind, v.Message = err.Kind.String(), err.Error()
		v.Again = !slices.ContainsFunc(c.Failed, func(f api.Failure) bool { return !retryable(stoker.ParseKind(f.Kind)) })
	}
	return v, nil
}

// Certificate reads a stored certificate.
func (a *Activities) Certificate(ctx context.Context, id stoker.ID) (*api.Certificate, error) {
	body, err := a.o.Store.GetBlob(ctx, "certificates", id)
	if err != nil {
		return nil, err
	}
	c := &api.Certificate{}
	if err := json.Unmarshal(body, c); err != nil {
		return nil, stoker.Errorf(stoker.KindCorrupt, "certificate", id.Short(), "%w", err)
	}
	return c, nil
}

// Certify asks every live worker what it truly has and counts it against the
// manifest; deep re-reads every byte. It never says Ready unless each block of
// each object is whole on a disk.
func (a *Activities) Certify(ctx context.Context, in VerifyInput, deep bool) (*api.Certificate, error) {
	began := time.Now()
	m, err := a.o.Store.Load(ctx, in.Manifest)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	live, _, err := a.Workers(ctx)
	if err != nil {
		return nil, err
	}
	reports := make([]api.VerifyReport, len(live))
	err = a.EachWorker(ctx, addressesOf(live), func(ctx context.Context, i int, w *api.WorkerClient) (err error) {
		reports[i], err = w.Verify(ctx, api.VerifyRequest{Manifest: in.Manifest, Deep: deep})
		if err != nil && ctx.Err() == nil {
			a.o.Log.Warn("a worker cannot be counted", "dataset", in.Dataset, "manifest", in.Manifest.Short(), "worker", live[i].ID, "error", err)
			reports[i], err = api.VerifyReport{}, nil // what only it has is not there
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	t := newTally(m)
	for i := range reports {
		t.add(&reports[i])
	}
	c := t.certificate()
	c.Dataset, c.Generation, c.Manifest = in.Dataset, in.Generation, in.Manifest
	c.UFSRequests, c.UFSBytes, c.Refetched = in.UFSRequests, in.UFSBytes, in.Refetched
	c.Seconds = time.Since(began).Seconds()
	return c, nil
}

// tally joins what workers have, block by block.
type tally struct {
	m       *manifest.Manifest
	present [][]byte          // by shard: bitmap; nil = nothing
	corrupt []map[int]bool    // by shard: blocks that some worker found wrong
	reasons map[string]reason // by path
}

type reason struct{ kind, text string }

func newTally(m *manifest.Manifest) *tally {
	return &tally{m: m, present: make([][]byte, m.Shards()), corrupt: make([]map[int]bool, m.Shards()), reasons: map[string]reason{}}
}

func (t *tally) add(r *api.VerifyReport) {
	for _, s := range r.Shards {
		if int(s.Shard) >= len(t.present) {
			continue
		}
		blocks := int(t.m.Shard(s.Shard).Blocks)
		if t.present[s.Shard] == nil {
			t.present[s.Shard] = make([]byte, (blocks+7)/8)
		}
		have := s.Present
		if have == nil {
			have = bytes.Repeat([]byte{0xff}, (blocks+7)/8)
		}
		have = bytes.Clone(have)
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
		for i := range min(len(have), len(t.present[s.Shard])) {
			t.present[s.Shard][i] |= have[i]
		}
	}
	for _, f := range r.Failed {
		if _, known := t.reasons[f.Path]; !known {
			t.reasons[f.Path] = reason{f.Kind, f.Reason}
		}
	}
}

func (t *tally) has(n uint32, block int) bool {
	p := t.present[n]
	return block/8 < len(p) && p[block/8]&(1<<(block%8)) != 0
}

// certificate counts objects. An extent object is in several shards.
func (t *tally) certificate() *api.Certificate {
	c := &api.Certificate{Objects: t.m.Objects(), Bytes: t.m.Bytes(), Failed: []api.Failure{}, Unmountable: []api.Unmountable{}}
	lost := map[manifest.Row]bool{} // true: a block of it is wrong somewhere
	missing := int64(0)
	var members []manifest.Member
	for n := range uint32(t.m.Shards()) {
		members = t.m.Members(n, members[:0])
		for _, mem := range members {
			for b, blocks := int(mem.FirstBlock), manifest.BlocksOf(mem.Bytes); b < int(mem.FirstBlock)+blocks; b++ {
				if t.has(n, b) {
					continue
				}
				missing += min(mem.Bytes-int64(b-int(mem.FirstBlock))*stoker.BlockBytes, stoker.BlockBytes)
				lost[mem.Row] = lost[mem.Row] || t.corrupt[n][b]
			}
		}
	}
	c.ResidentObjects, c.ResidentBytes = c.Objects-int64(len(lost)), c.Bytes-missing
	for row, wrong := range lost {
		c.Failed = append(c.Failed, t.failure(row, wrong))
	}
	slices.SortFunc(c.Failed, func(a, b api.Failure) int { return cmp.Compare(a.Path, b.Path) })
	for _, u := range t.m.Unmountable() {
		c.Unmountable = append(c.Unmountable, api.Unmountable{Key: api.EscapePath(u.Key), Reason: u.Reason})
	}
	c.State = api.CertificateReady
	if len(c.Failed) > 0 {
		c.State = api.CertificateFailed
	}
	return c
}

func (t *tally) failure(row manifest.Row, wrong bool) api.Failure {
	path := api.EscapePath(t.m.Path(row))
	if wrong {
		return api.Failure{Path: path, Kind: stoker.KindCorrupt.String(), Reason: "its bytes on a worker's disk do not match their checksum"}
	}
	if r, known := t.reasons[path]; known {
		return api.Failure{Path: path, Kind: r.kind, Reason: r.text}
	}
	return api.Failure{Path: path, Kind: stoker.KindTransient.String(), Reason: "not resident on any live worker"}
}
