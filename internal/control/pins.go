package control

import (
	"context"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
)

const (
	maxPin    = 365 * 24 * time.Hour
	maxReason = 200 // bytes
)

// checkPin refuses what nobody could make sense of later.
func checkPin(name string, req *api.PinRequest) error {
	length := req.ForSeconds
	req.Reason = strings.TrimSpace(req.Reason)
	switch {
	case math.IsNaN(length) || length <= 0 || length > maxPin.Seconds():
		return stoker.Errorf(stoker.KindInvalid, "pin", name, "for %v seconds: want more than none, and at most a year", length)
	case req.Reason == "":
		return stoker.Errorf(stoker.KindInvalid, "pin", name, "for what reason? Those who need the space will ask")
	case len(req.Reason) > maxReason || strings.ContainsFunc(req.Reason, func(r rune) bool { return !unicode.IsPrint(r) }):
		return stoker.Errorf(stoker.KindInvalid, "pin", name, "the reason is shown to others: up to %d bytes of text in one line", maxReason)
	}
	return nil
}

// pin is PUT /v1/datasets/{name}/pin. The pin stands in the manifest store
// before the workers are told; one that does not answer now hears of it with
// the next renewal.
func (c *Controller) pin(w http.ResponseWriter, r *http.Request) error {
	var req api.PinRequest
	if err := api.ReadJSON(w, r, &req); err != nil {
		return err
	}
	d, err := c.readable(r, c.named)
	if err != nil {
		return err
	}
	if err := checkPin(d.Name, &req); err != nil {
		return err
	}
	who := api.PrincipalOf(r.Context())
	if who.Anonymous {
		return stoker.Errorf(stoker.KindDenied, "pin", d.Name, "a pin has an owner, and nobody vouches for you: use the controller's Unix socket, or a token")
	}
	now := time.Now().UTC()
	p := manifest.Pin{Owner: who.Name, Generation: d.Number, Manifest: d.Manifest, Reason: req.Reason,
		Since: now, Until: now.Add(time.Duration(req.ForSeconds * float64(time.Second)))}
	err = c.manifests.ChangePins(r.Context(), d.Name, func(all *manifest.DatasetPins) error {
		all.Pins = slices.DeleteFunc(all.InForce(now), func(o manifest.Pin) bool { return o.Owner == p.Owner && o.Generation == p.Generation })
		all.Pins = append(all.Pins, p)
		return nil
	})
	if err != nil {
		return err
	}
	lease := pinLease(d.Name, p, now)
	if err := c.acts.PutLeases(r.Context(), activities.LeaseInput{Leases: []api.Lease{lease}, Partial: true}); err != nil {
		c.o.Log.Warn("workers hear of a pin with the next renewal", "dataset", d.Name, "manifest", d.Manifest.Short(), "error", err)
	}
	c.o.Log.Info("pinned", "dataset", d.Name, "manifest", d.Manifest.Short(), "owner", p.Owner, "until", p.Until, "reason", p.Reason)
	api.WriteJSON(w, http.StatusOK, api.Pin(p))
	return nil
}

// unpin is DELETE /v1/datasets/{name}/pin. It answers with what has ended.
func (c *Controller) unpin(w http.ResponseWriter, r *http.Request) error {
	name, generation := splitRef(r.PathValue("name"))
	if _, err := c.find(r.Context(), name, generation); err != nil {
		return err
	}
	var ended []manifest.Pin
	err := c.manifests.ChangePins(r.Context(), name, func(all *manifest.DatasetPins) (err error) {
		there := all.InForce(time.Now())
		if generation != 0 {
			there = slices.DeleteFunc(there, func(p manifest.Pin) bool { return p.Generation != generation })
		}
		ended, err = whichEnd(name, there, api.PrincipalOf(r.Context()), r.URL.Query().Get("owner"))
		all.Pins = slices.DeleteFunc(all.InForce(time.Now()), func(p manifest.Pin) bool { return slices.Contains(ended, p) })
		return err
	})
	if err != nil {
		return err
	}
	drop := activities.LeaseInput{Partial: true}
	for _, p := range ended {
		drop.Drop = append(drop.Drop, pinLease(name, p, time.Now()).Holder)
		c.o.Log.Info("unpinned", "dataset", name, "manifest", p.Manifest.Short(), "owner", p.Owner, "by", api.PrincipalOf(r.Context()).Name)
	}
	c.telling.Lock()
	defer c.telling.Unlock()
	if err := c.acts.PutLeases(r.Context(), drop); err != nil {
		c.o.Log.Warn("workers do not hear that pins have ended; these run out", "dataset", name, "error", err)
	}
	api.WriteJSON(w, http.StatusOK, shownPins(ended))
	return nil
}

// whichEnd picks those of a dataset's pins that somebody ends: his own, those of
// owner, and where an admin has none and names nobody, all.
func whichEnd(name string, there []manifest.Pin, who api.Principal, owner string) ([]manifest.Pin, error) {
	if owner != "" && owner != who.Name && !who.Admin {
		return nil, stoker.Errorf(stoker.KindDenied, "unpin", name, "the pins of %s are not yours (%s)", owner, who.Name)
	}
	var own []manifest.Pin
	var owners []string
	for _, p := range there {
		owners = append(owners, p.Owner)
		if p.Owner == owner || owner == "" && p.Owner == who.Name {
			own = append(own, p)
		}
	}
	slices.Sort(owners)
	switch {
	case len(own) > 0:
		return own, nil
	case len(there) == 0:
		return nil, stoker.Errorf(stoker.KindNotExist, "unpin", name, "is not pinned: 'stoker dataset show %s' shows pins", name)
	case owner != "":
		return nil, stoker.Errorf(stoker.KindNotExist, "unpin", name, "is not pinned by %s, but by %s", owner, strings.Join(slices.Compact(owners), ", "))
	case who.Admin:
		return there, nil
	}
	return nil, stoker.Errorf(stoker.KindDenied, "unpin", name, "is pinned by %s, not by you (%s): they and root may end that", strings.Join(slices.Compact(owners), ", "), who.Name)
}

// pinLease is what the workers are told of a pin. No job id has a slash.
func pinLease(dataset string, p manifest.Pin, now time.Time) api.Lease {
	return api.Lease{
		Holder: "pin/" + p.Owner + "/" + dataset + "/" + p.Manifest.Short(), Owner: p.Owner, Manifest: p.Manifest, TTLSeconds: activities.LeaseTTL.Seconds(),
		EndsSeconds: max(p.Until.Sub(now).Seconds(), 0.001), Reason: p.Reason, Until: p.Until,
	}
}

// pinLeases are the leases of all pins in force.
func (c *Controller) pinLeases(ctx context.Context) ([]api.Lease, error) {
	all, err := c.manifests.AllPins(ctx)
	if err != nil {
		return nil, err
	}
	var out []api.Lease
	now := time.Now()
	for _, d := range all {
		for _, p := range d.InForce(now) {
			out = append(out, pinLease(d.Dataset, p, now))
		}
	}
	return out, nil
}

// pinsByName are those in force.
func (c *Controller) pinsByName(ctx context.Context) (map[string][]manifest.Pin, error) {
	all, err := c.manifests.AllPins(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string][]manifest.Pin{}
	for _, d := range all {
		if pins := d.InForce(time.Now()); len(pins) > 0 {
			out[d.Dataset] = pins
		}
	}
	return out, nil
}

func shownPins(pins []manifest.Pin) []api.Pin {
	out := make([]api.Pin, len(pins))
	for i, p := range pins {
		out[i] = api.Pin(p)
	}
	return out
}

// heldBy says who keeps a manifest's data: whom the workers name, and pins that
// a worker may not have heard of.
func heldBy(ws []worker, pins *manifest.DatasetPins, id stoker.ID) []string {
	who := holders(ws, id)
	for _, p := range pins.InForce(time.Now()) {
		if p.Manifest == id {
			who = append(who, api.Pin(p).String())
		}
	}
	slices.Sort(who)
	return slices.Compact(who)
}

// checkPins counts the pins for the doctor.
func (c *Controller) checkPins(ctx context.Context) api.Check {
	pins, err := c.pinsByName(ctx)
	if err != nil {
		return api.Fail("repair or delete the named object below pins/ in the manifest store; until then no lease ends", "cannot be read: %v", err)
	}
	var n int
	var next manifest.Pin
	name := ""
	for d, all := range pins {
		n += len(all)
		for _, p := range all {
			if name == "" || p.Until.Before(next.Until) {
				name, next = d, p
			}
		}
	}
	if n == 0 {
		return api.Ok("nothing is pinned")
	}
	return api.Ok("%d; the first to end is of %s: %s", n, name, api.Pin(next))
}
