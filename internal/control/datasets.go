package control

import (
	"cmp"
	"context"
	"math"
	"net/http"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
	"stoker.dev/ufs"
)

// resolved is a dataset's generation as a request names it.
type resolved struct {
	entry *manifest.Dataset // of a URI: without an owner
	api.DatasetRef
	manifest.Generation
}

// splitRef reads NAME[@GEN].
func splitRef(ref string) (name string, generation int) {
	if i := strings.LastIndexByte(ref, '@'); i > 0 {
		if n, err := strconv.Atoi(ref[i+1:]); err == nil && n > 0 {
			return ref[:i], n
		}
	}
	return ref, 0
}

// find looks a registered dataset up; generation 0 is the current one.
func (c *Controller) find(ctx context.Context, name string, generation int) (*resolved, error) {
	if isURI(name) {
		return nil, stoker.Errorf(stoker.KindNotExist, "dataset", name, "is no name: 'stoker dataset add NAME %s' registers it, so that it can be pinned, synced and steered", name)
	}
	d, _, err := c.manifests.Dataset(ctx, name)
	if stoker.KindOf(err) == stoker.KindNotExist || stoker.KindOf(err) == stoker.KindInvalid {
		return nil, stoker.Errorf(stoker.KindNotExist, "dataset", name, "is not registered: 'stoker dataset ls' lists what is, 'stoker dataset add %s URI' adds it", name)
	} else if err != nil {
		return nil, err
	}
	g := d.Current()
	if generation != 0 {
		var ok bool
		if g, ok = d.Find(generation); !ok {
			return nil, stoker.Errorf(stoker.KindNotExist, "dataset", name, "has no generation %d; the current one is %d", generation, d.Current().Number)
		}
	}
	if g.Number != d.Current().Number {
		if err := c.manifests.Keep(ctx, g.Manifest); stoker.KindOf(err) == stoker.KindNotExist {
			return nil, stoker.Errorf(stoker.KindNotExist, "dataset", name, "generation %d was removed, since nobody had used it for long; the current one is %d", generation, d.Current().Number)
		} else if err != nil {
			return nil, err
		}
	}
	return &resolved{entry: d, DatasetRef: api.DatasetRef{Name: name, Generation: g.Number}, Generation: g}, nil
}

// named finds the dataset of the request's path.
func (c *Controller) named(r *http.Request) (*resolved, error) {
	name, generation := splitRef(r.PathValue("name"))
	return c.find(r.Context(), name, generation)
}

// maxRoots bounds the prefixes joined in one dataset.
const maxRoots = 64

// roots checks what a new dataset is made of.
func roots(req *api.AddDatasetRequest) ([]manifest.Root, error) {
	if len(req.Roots) == 0 || len(req.Roots) > maxRoots {
		return nil, stoker.Errorf(stoker.KindInvalid, "dataset", req.Name, "%d URIs: want 1 to %d", len(req.Roots), maxRoots)
	}
	var out []manifest.Root
	for _, r := range req.Roots {
		folder := r.Folder
		if folder != "" && (path.Clean("/"+folder) != "/"+folder || folder == ".." || len(folder) > 1024) {
			return nil, stoker.Errorf(stoker.KindInvalid, "dataset", req.Name, "folder %q is no plain relative path", folder)
		}
		for _, other := range out {
			if overlap(other.Folder, folder) {
				return nil, stoker.Errorf(stoker.KindInvalid, "dataset", req.Name, "%s and %s would both be at %q: join them as FOLDER=URI", other.URI, r.URI, folder)
			}
		}
		out = append(out, manifest.Root{Location: r.Location, Folder: folder})
	}
	return out, nil
}

// overlap reports whether one folder is the other or holds it.
func overlap(a, b string) bool {
	inside := func(a, b string) bool { return a == "" || a == b || strings.HasPrefix(b, a+"/") }
	return inside(a, b) || inside(b, a)
}

// newDataset checks what is to be added, and makes its entry.
func newDataset(owner string, req *api.AddDatasetRequest) (d manifest.Dataset, err error) {
	if err := manifest.ValidateName(req.Name); err != nil {
		return d, err
	}
	if req.MaxAgeSeconds < 0 || math.IsNaN(req.MaxAgeSeconds) || req.MaxAgeSeconds > maxAhead {
		return d, stoker.Errorf(stoker.KindInvalid, "dataset", req.Name, "a listing that is at most %.0f seconds old: want 0 (for never) to %.0f (31 years)", req.MaxAgeSeconds, maxAhead)
	}
	every, err := syncEvery(req.Name, req.SyncEverySeconds)
	if err != nil {
		return d, err
	}
	if err := checkEviction(req.Name, &req.Eviction); err != nil {
		return d, err
	}
	if req.Replicas < 0 || req.Replicas > maxReplicas {
		return d, stoker.Errorf(stoker.KindInvalid, "dataset", req.Name, "%d replicas: want 1 to %d", req.Replicas, maxReplicas)
	}
	if req.Replicas == 1 {
		req.Replicas = 0 // as the registry has it
	}
	rs, err := roots(req)
	if err != nil {
		return d, err
	}
	d = manifest.Dataset{Name: req.Name, Owner: owner, Roots: rs, Created: time.Now().UTC(), Replicas: req.Replicas,
		MaxAge: time.Duration(req.MaxAgeSeconds * float64(time.Second)), SyncEvery: every,
		Evict: req.Evict, TTL: time.Duration(req.TTLSeconds * float64(time.Second)), Nonce: cmp.Or(req.Nonce, stoker.NewToken())}
	if req.Readers != nil {
		d.Readers, err = readersOf(&d, req.Readers)
	}
	return d, err
}

func (c *Controller) addDataset(w http.ResponseWriter, r *http.Request) error {
	var req api.AddDatasetRequest
	if err := api.ReadJSON(w, r, &req); err != nil {
		return err
	}
	d, err := newDataset(api.PrincipalOf(r.Context()).Name, &req)
	if err != nil {
		return err
	}
	taken := stoker.Errorf(stoker.KindInvalid, "dataset", req.Name, "is registered already ('stoker dataset show %s'): take another name", req.Name)
	there, _, err := c.manifests.Dataset(r.Context(), req.Name)
	again := err == nil
	if again && !repeats(&d, there) {
		return taken
	}
	for _, root := range d.Roots {
		if _, _, err := c.mounts.Open(r.Context(), root.Location); err != nil {
			return err // an unknown scheme, a wrong endpoint
		}
	}
	if err := c.mayAdd(r.Context(), &d); err != nil {
		return err
	}
	stream := api.NewStream(w)
	if again {
		err = c.o.Flows.Added(r.Context(), d.Name)
	} else {
		_, err = c.o.Flows.AddDataset(r.Context(), d, func(p api.ListProgress) { _ = stream.Send(api.Event{Listing: &p}) })
	}
	if err == nil {
		err = c.sendAdded(r.Context(), stream, &d, taken)
	}
	if err != nil {
		stream.Fail(r.Context(), err)
	}
	return nil
}

// repeats reports whether an entry was made by the very request that is made
// again, whose answer broke off.
func repeats(d, there *manifest.Dataset) bool {
	return there.Nonce == d.Nonce && there.Owner == d.Owner && reflect.DeepEqual(there.Roots, d.Roots)
}

// equals reports whether an entry is what was asked for, whoever asked first.
func equals(d, there *manifest.Dataset) bool {
	return there.Owner == d.Owner && reflect.DeepEqual(there.Roots, d.Roots) &&
		there.MaxAge == d.MaxAge && there.SyncEvery == d.SyncEvery && there.Evict == d.Evict && there.TTL == d.TTL && there.Replicas == d.Replicas && slices.Equal(there.Readers, d.Readers)
}

// sendAdded answers with the entry, if it is the one that was asked for: an
// add at the same time may have won the name. The same one by the same user,
// which was joined, is as good.
func (c *Controller) sendAdded(ctx context.Context, stream *api.Stream, d *manifest.Dataset, taken error) error {
	found, err := c.find(ctx, d.Name, 0)
	if err != nil {
		return err
	}
	if !repeats(d, found.entry) && !equals(d, found.entry) {
		return taken
	}
	if !evictionOf(found.entry).IsDefault() {
		c.tellRule(ctx, found.entry)
	}
	detail, err := c.detail(ctx, found)
	if err != nil {
		return err
	}
	return stream.Send(api.Event{Dataset: detail})
}

func (c *Controller) listDatasets(w http.ResponseWriter, r *http.Request) error {
	ws, err := c.workers(r.Context())
	if stoker.KindOf(err) == stoker.KindTransient {
		ws, err = nil, nil // without Redis nothing is known of what is resident
	}
	if err != nil {
		return err
	}
	all, err := c.datasets(r.Context(), ws)
	if err != nil {
		return err
	}
	api.WriteJSON(w, http.StatusOK, all)
	return nil
}

// datasets lists the registry. What is resident is summed up over the workers:
// copies on several count once at most.
func (c *Controller) datasets(ctx context.Context, ws []worker) ([]api.DatasetInfo, error) {
	entries, err := c.manifests.Datasets(ctx)
	if err != nil {
		return nil, err
	}
	pins, err := c.pinsByName(ctx)
	if err != nil {
		return nil, err
	}
	out := []api.DatasetInfo{}
	for _, d := range entries {
		i := info(d, d.Current(), ws)
		i.Pins = shownPins(pins[d.Name])
		out = append(out, i)
	}
	slices.SortFunc(out, func(a, b api.DatasetInfo) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func info(d *manifest.Dataset, g manifest.Generation, ws []worker) api.DatasetInfo {
	i := api.DatasetInfo{Name: d.Name, URIs: []string{}, Owner: d.Owner, Generation: g.Number, Manifest: g.Manifest,
		Objects: g.Objects, Bytes: g.Bytes, ListedAt: g.ListedAt, SyncEverySeconds: d.SyncEvery.Seconds(), LastSync: lastSync(d),
		Replicas: d.Replicas, Readers: d.Readers, Eviction: evictionOf(d)}
	for _, r := range d.Roots {
		uri := r.URI
		if r.Folder != "" {
			uri = r.Folder + "=" + uri
		}
		i.URIs = append(i.URIs, uri)
	}
	for _, w := range ws {
		for _, h := range w.status.Manifests {
			if h.Manifest == g.Manifest {
				i.ResidentBytes += h.Bytes
			}
		}
	}
	i.ResidentBytes = min(i.ResidentBytes, i.Bytes)
	return i
}

// toChange is the dataset that a request names and its caller may change, all of
// it: whole says why one generation will not do.
func (c *Controller) toChange(r *http.Request, whole string) (*resolved, error) {
	d, err := c.named(r)
	if err != nil {
		return nil, err
	}
	if strings.Contains(r.PathValue("name"), "@") {
		return nil, stoker.Errorf(stoker.KindInvalid, "dataset", r.PathValue("name"), "%s: leave @%d out", whole, d.Number)
	}
	return d, mayChange(r, "dataset", d.Name, d.entry.Owner)
}

// answerDetail answers with a dataset as it is now.
func (c *Controller) answerDetail(w http.ResponseWriter, r *http.Request, name string) error {
	d, err := c.find(r.Context(), name, 0)
	if err != nil {
		return err
	}
	return c.writeDetail(w, r, d)
}

func (c *Controller) showDataset(w http.ResponseWriter, r *http.Request) error {
	d, err := c.held(r)
	if err != nil {
		return err
	}
	key, err := api.SelectionOf(r.URL.Query()).Key()
	if err != nil {
		return err
	}
	who, err := askedFor(r)
	if err != nil {
		return err
	}
	rs, err := c.manifests.RestrictionsOf(r.Context(), d.entry)
	if err != nil {
		return err
	}
	denied := rs.Check(d.entry.Name, d.entry.Roots, who)
	if denied != nil && (key != "" || r.URL.Query().Has("reader")) {
		return denied
	}
	detail, err := c.detailWith(r.Context(), d, rs)
	if err == nil && key != "" {
		detail.Selected, err = c.selected(r.Context(), d.Manifest, key)
	}
	if err != nil {
		return err
	}
	if denied != nil { // all see that it is there, and how large, but not what it is made of
		detail.Unmountable = []api.Unmountable{}
	}
	api.WriteJSON(w, http.StatusOK, detail)
	return nil
}

func (c *Controller) writeDetail(w http.ResponseWriter, r *http.Request, d *resolved) error {
	detail, err := c.detail(r.Context(), d)
	if err != nil {
		return err
	}
	api.WriteJSON(w, http.StatusOK, detail)
	return nil
}

func (c *Controller) detail(ctx context.Context, d *resolved) (*api.DatasetDetail, error) {
	rs, err := c.manifests.RestrictionsOf(ctx, d.entry)
	if err != nil {
		return nil, err
	}
	return c.detailWith(ctx, d, rs)
}

func (c *Controller) detailWith(ctx context.Context, d *resolved, rs manifest.Restrictions) (*api.DatasetDetail, error) {
	ws, err := c.workers(ctx)
	if err != nil && stoker.KindOf(err) != stoker.KindTransient {
		return nil, err
	}
	m, err := c.manifests.Load(ctx, d.Manifest)
	if err != nil {
		return nil, err
	}
	defer func() { _ = m.Close() }() // it was only read
	out := &api.DatasetDetail{
		DatasetInfo: info(d.entry, d.Generation, ws), Shards: m.Shards(), Directories: m.Directories(),
		Locations: []ufs.Location{}, Unmountable: []api.Unmountable{},
	}
	out.ReadersOf = rs.Others(d.Name, d.entry.Roots)
	pins, err := c.pinsOf(ctx, d)
	if err != nil {
		return nil, err
	}
	out.Pins = shownPins(pins.InForce(time.Now()))
	out.Holders, out.Views = heldBy(ws, pins, d.Manifest), viewsOf(ws, d.Manifest)
	c.nextSync(ctx, out)
	c.copiesOf(ctx, out)
	if state, ok := c.phases.get(ctx, d.Manifest); ok {
		out.Load = c.loadStatus(ctx, state, d.Bytes, true)
	}
	for _, r := range d.entry.Roots {
		out.Locations = append(out.Locations, r.Location)
	}
	for _, u := range m.Unmountable() {
		out.Unmountable = append(out.Unmountable, api.Unmountable{Key: api.EscapePath(u.Key), Reason: u.Reason})
	}
	return out, nil
}

// viewsOf lists the mounted views of a generation.
func viewsOf(ws []worker, id stoker.ID) (all []api.ViewInfo) {
	for _, w := range ws {
		for _, m := range w.status.Mounts {
			if m.Manifest == id {
				all = append(all, api.ViewInfo{Worker: w.info.ID, Node: w.info.Node, Dir: m.Dir, View: m.View, Why: m.Why, Job: m.Holder})
			}
		}
	}
	return all
}

func (c *Controller) verify(w http.ResponseWriter, r *http.Request) error {
	d, err := c.readable(r, c.held)
	if err != nil {
		return err
	}
	deep, err := strconv.ParseBool(r.URL.Query().Get("deep"))
	if err != nil && r.URL.Query().Has("deep") {
		return stoker.Errorf(stoker.KindInvalid, "verify", d.Name, "deep=%q: want true or false", r.URL.Query().Get("deep"))
	}
	key, err := api.SelectionOf(r.URL.Query()).Key()
	if err != nil {
		return err
	}
	stream := api.NewStream(w)
	in := activities.VerifyInput{Dataset: d.Name, Generation: d.Number, Manifest: d.Manifest, Deep: deep, Select: key}
	tell := func() {}
	if deep {
		tell = c.tellChecks(r.Context(), d.Manifest, stream)
	}
	cert, err := c.acts.Certify(r.Context(), in)
	tell()
	if err == nil {
		err = stream.Send(api.Event{Certificate: cert})
	}
	if err != nil {
		stream.Fail(r.Context(), err)
	}
	return nil
}

// tellChecks sends how far a deep verification is, until stop is called.
func (c *Controller) tellChecks(ctx context.Context, id stoker.ID, stream *api.Stream) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			var st api.LoadStatus
			if c.loads.status(ctx, id, nil, 1, 0, &st) && st.Check != nil && ctx.Err() == nil {
				_ = stream.Send(api.Event{Check: st.Check}) // whoever has gone ends the request
			}
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}
