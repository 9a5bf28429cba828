package activities

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
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
	Plan        stoker.ID `json:",omitzero"`  // by which it was loaded
	Deep        bool      `json:",omitempty"` // read every byte again
	Copies      int       `json:",omitempty"` // workers that are to have each shard whole; 0 = 1
	Select      string    `json:",omitempty"` // see JoinInput
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
	// Gone are the bytes that are missing although no load could not have
	// them: they were there. Away are parts of the plan whose workers do not
	// answer.
	Gone int64 `json:",omitempty"`
	Away []int `json:",omitempty"`
}

// awayMost bounds Verified.Away.
const awayMost = 64

// Verify counts what is on the workers' disks against the manifest and stores
// the certificate.
func (a *Activities) Verify(ctx context.Context, in VerifyInput) (Verified, error) {
	defer alive(ctx)()
	c, t, err := a.certify(ctx, in)
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
		err := stoker.Errorf(stoker.KindIncomplete, "preload", in.Dataset, "%s", missing(c))
		v.Kind, v.Message = err.Kind.String(), err.Error()
		v.Again = !slices.ContainsFunc(c.Failed, func(f api.Failure) bool { return !retryable(stoker.ParseKind(f.Kind)) && !t.refillable[f.Path] })
		v.Gone, v.Away = t.gone, t.away[:min(len(t.away), awayMost)]
	}
	return v, nil
}

// missing says what a certificate lacks.
func missing(c *api.Certificate) string {
	if c.ResidentObjects == c.Objects && len(c.Nodes) > 0 {
		return fmt.Sprintf("%d of %d objects are not on each of %d nodes", len(c.Failed), c.Objects, len(c.Nodes))
	}
	if c.ResidentObjects < c.Objects {
		return fmt.Sprintf("%d of %d objects are not resident", c.Objects-c.ResidentObjects, c.Objects)
	}
	return fmt.Sprintf("%d of %d objects are on fewer than %d workers", len(c.Failed), c.Objects, c.Replicas)
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
// manifest; in.Deep re-reads every byte. It never says Ready unless each block of
// each object is whole on a disk.
func (a *Activities) Certify(ctx context.Context, in VerifyInput) (*api.Certificate, error) {
	c, _, err := a.certify(ctx, in)
	return c, err
}

func (a *Activities) certify(ctx context.Context, in VerifyInput) (*api.Certificate, *tally, error) {
	began := time.Now()
	m, err := a.o.Store.Load(ctx, in.Manifest)
	if err != nil {
		return nil, nil, err
	}
	defer m.Close()
	asked, parts, err := a.counted(ctx, in.Plan)
	if err != nil {
		return nil, nil, err
	}
	reports, silent := make([]api.VerifyReport, len(asked)), make([]bool, len(asked))
	err = a.EachWorker(ctx, addressesOf(asked), func(ctx context.Context, i int, w *api.WorkerClient) (err error) {
		reports[i], err = w.Verify(ctx, api.VerifyRequest{Manifest: in.Manifest, Deep: in.Deep})
		if err != nil && ctx.Err() == nil {
			a.o.Log.Warn("a worker cannot be counted", "dataset", in.Dataset, "manifest", in.Manifest.Short(), "worker", asked[i].ID, "error", err)
			reports[i], silent[i], err = api.VerifyReport{}, true, nil // what only it has is not there
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	nodes, err := a.nodesOfPlan(ctx, in.Plan)
	if err != nil {
		return nil, nil, err
	}
	t := newTally(m)
	t.want = max(1, in.Copies)
	if t.only, err = Choose(m, in.Select); err != nil {
		return nil, nil, err
	}
	if err := t.only.Nothing(in.Dataset, m); err != nil {
		return nil, nil, err
	}
	t.nodes.want(nodes)
	for i := range reports {
		t.add(asked[i].ID, &reports[i])
		if silent[i] && parts[i] >= 0 {
			t.away = append(t.away, parts[i])
		}
	}
	c := t.certificate()
	c.Dataset, c.Generation, c.Manifest, c.Deep = in.Dataset, in.Generation, in.Manifest, in.Deep
	if in.Copies > 1 {
		c.Replicas = in.Copies
	}
	if len(nodes) > 0 {
		c.Layout, c.Nodes = "local", nodes
	}
	c.UFSRequests, c.UFSBytes, c.Refetched = in.UFSRequests, in.UFSBytes, in.Refetched
	c.Seconds = time.Since(began).Seconds()
	return c, t, nil
}

// counted are the live workers and those that have a part of the plan, if one
// is named; parts has the numbers of their parts, -1 for those without.
func (a *Activities) counted(ctx context.Context, id stoker.ID) (asked []placement.Worker, parts []int, err error) {
	asked, _, err = a.Workers(ctx)
	if err != nil {
		return nil, nil, err
	}
	asked = slices.Clone(asked)
	for range asked {
		parts = append(parts, -1)
	}
	if id.IsZero() {
		return asked, parts, nil
	}
	plan, err := a.LoadPlan(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	for _, part := range plan.Parts() {
		w := plan.Workers[part]
		i := slices.IndexFunc(asked, func(x placement.Worker) bool { return x.ID == w.ID })
		if i < 0 {
			asked, parts = append(asked, placement.Worker{ID: w.ID, Address: w.Address}), append(parts, part)
		} else {
			parts[i] = part
		}
	}
	return asked, parts, nil
}

func (t *tally) has(n uint32, block int) bool {
	p := t.present[n]
	return block/8 < len(p) && p[block/8]&(1<<(block%8)) != 0
}

// whole reports whether every block of a shard is there.
func (t *tally) whole(n uint32) bool { return full(t.present[n], int(t.m.Shard(n).Blocks)) }

// enough reports whether a bitmap of a shard has all blocks that are wanted.
func (t *tally) enough(n uint32, p []byte) bool {
	if t.only == nil || full(p, int(t.m.Shard(n).Blocks)) {
		return full(p, int(t.m.Shard(n).Blocks))
	}
	for _, mem := range t.m.Members(n, nil) {
		for b := int(mem.FirstBlock); t.only.Has(mem.Row) && b < int(mem.FirstBlock)+manifest.BlocksOf(mem.Bytes); b++ {
			if b/8 >= len(p) || p[b/8]&(1<<(b%8)) == 0 {
				return false
			}
		}
	}
	return true
}

// full reports whether a bitmap has all blocks.
func full(p []byte, blocks int) bool {
	if len(p) < (blocks+7)/8 {
		return false
	}
	for _, b := range p[:blocks/8] {
		if b != 0xff {
			return false
		}
	}
	rest := byte(1)<<(blocks%8) - 1
	return rest == 0 || p[blocks/8]&rest == rest
}

// fewer notes the objects of a shard that too few workers have.
func (t *tally) fewer(n uint32, few map[manifest.Row]int) {
	for _, mem := range t.m.Members(n, nil) {
		if !t.only.Has(mem.Row) {
			continue
		}
		if workers, known := few[mem.Row]; !known || int(t.copies[n]) < workers {
			few[mem.Row] = int(t.copies[n])
		}
	}
}

// certificate counts objects. An extent object is in several shards.
func (t *tally) certificate() *api.Certificate {
	c := &api.Certificate{Objects: t.m.Objects(), Bytes: t.m.Bytes(), Failed: []api.Failure{}, Unmountable: []api.Unmountable{}}
	if t.only != nil {
		c.Objects, c.Bytes, c.Selection = t.only.Objects, t.only.Bytes, &t.only.Selection
	}
	lost := map[manifest.Row]bool{} // true: a block of it is wrong somewhere
	few := map[manifest.Row]int{}   // on how many workers
	missing, missingOf := int64(0), map[manifest.Row]int64{}
	var members []manifest.Member
	for n := range uint32(t.m.Shards()) {
		if !t.only.hasShard(n) {
			continue
		}
		if t.want > 1 && int(t.copies[n]) < t.want {
			t.fewer(n, few)
		}
		if t.whole(n) {
			continue // its files need not be looked at: there may be a billion in all
		}
		members = t.m.Members(n, members[:0])
		t.lacks(n, members, func(row manifest.Row, bytes int64, wrong bool) {
			missing, missingOf[row] = missing+bytes, missingOf[row]+bytes
			lost[row] = lost[row] || wrong
		})
	}
	c.ResidentObjects, c.ResidentBytes = c.Objects-int64(len(lost)), c.Bytes-missing
	c.Checksums, c.Workers, c.Wrong = t.sums, t.workers, t.wrongFiles()
	for row, wrong := range lost {
		f := t.failure(row, wrong)
		c.Failed = append(c.Failed, f)
		if _, known := t.reasons[f.Path]; !known {
			t.gone += missingOf[row]
		}
	}
	for row, workers := range few {
		if _, known := lost[row]; !known {
			c.Failed = append(c.Failed, api.Failure{Path: api.EscapePath(t.m.Path(row)), Kind: stoker.KindTransient.String(),
				Reason: fmt.Sprintf("whole on %d of %d workers", workers, t.want)})
		}
	}
	t.nodes.lacks(t.m, t.only, func(row manifest.Row, node string) {
		_, known := few[row]
		if _, gone := lost[row]; !gone && !known {
			few[row] = 0
			c.Failed = append(c.Failed, t.lackedBy(row, node))
		}
	})
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

// lacks calls fn for each block of a shard that is wanted and nowhere; wrong says
// that some worker had other bytes.
func (t *tally) lacks(n uint32, members []manifest.Member, fn func(row manifest.Row, bytes int64, wrong bool)) {
	for _, mem := range members {
		if !t.only.Has(mem.Row) {
			continue
		}
		for b, blocks := int(mem.FirstBlock), manifest.BlocksOf(mem.Bytes); b < int(mem.FirstBlock)+blocks; b++ {
			if !t.has(n, b) {
				fn(mem.Row, blockBytes(mem, b), t.corrupt[n][b])
			}
		}
	}
}

// blockBytes is how many bytes of its object block b of a shard has.
func blockBytes(mem manifest.Member, b int) int64 {
	return min(mem.Bytes-int64(b-int(mem.FirstBlock))*stoker.BlockBytes, stoker.BlockBytes)
}

// lackedBy is an object that is resident, and not on a node that has to have it.
func (t *tally) lackedBy(row manifest.Row, node string) api.Failure {
	f := api.Failure{Path: api.EscapePath(t.m.Path(row)), Kind: stoker.KindTransient.String(), Reason: "not on worker " + node + ", which has to have all"}
	if r, known := t.reasons[f.Path]; known {
		f.Kind, f.Reason = r.kind, f.Reason+": "+r.text
	}
	return f
}

func (t *tally) failure(row manifest.Row, wrong bool) api.Failure {
	path := api.EscapePath(t.m.Path(row))
	if wrong {
		t.refillable[path] = true
		return api.Failure{Path: path, Kind: stoker.KindCorrupt.String(), Reason: "its bytes on a worker's disk do not match their checksum"}
	}
	if r, known := t.reasons[path]; known {
		return api.Failure{Path: path, Kind: r.kind, Reason: r.text}
	}
	return api.Failure{Path: path, Kind: stoker.KindTransient.String(), Reason: "not resident on any live worker"}
}
