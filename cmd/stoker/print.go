package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"sigs.k8s.io/yaml"

	"stoker.dev"
	"stoker.dev/cmd/stoker/internal/live"
	"stoker.dev/internal/api"
)

// print writes v to stdout in the format asked for; table writes the cells of
// a table, separated by tabs.
func (a *app) print(v any, table func(w io.Writer)) error {
	var body []byte
	var err error
	switch a.chosen.Output {
	case "json":
		if body, err = json.MarshalIndent(v, "", "  "); err == nil {
			body = append(body, '\n')
		}
	case "yaml":
		body, err = yaml.Marshal(v)
	default:
		var b strings.Builder
		w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
		table(w)
		err = w.Flush()
		body = []byte(trimLines(b.String()))
	}
	if err == nil {
		_, err = a.stdout.Write(body)
	}
	if err != nil {
		return stoker.Errorf(stoker.KindInternal, "print", "", "%w", err)
	}
	return nil
}

// trimLines takes the blanks away that a table leaves behind empty cells.
func trimLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = strings.TrimRight(l, " ")
	}
	return strings.Join(lines, "\n")
}

// row writes one line of a table.
func row(w io.Writer, cells ...any) {
	for i, c := range cells {
		if i > 0 {
			fmt.Fprint(w, "\t")
		}
		text := printable(fmt.Sprint(c))
		if text == "" {
			text = "-"
		}
		fmt.Fprint(w, text)
	}
	fmt.Fprintln(w)
}

func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// span prints a duration for people, in its largest unit.
func span(d time.Duration) string { return live.Span(d) }

func eta(seconds float64) string { return live.ETA(seconds) }

// percent of part in whole; the whole of nothing is there.
func percent(part, whole int64) int { return live.Percent(part, whole) }

func (a *app) printDetail(d *api.DatasetDetail) error {
	d.URIs, d.Locations, d.Unmountable, d.Holders = orEmpty(d.URIs), orEmpty(d.Locations), orEmpty(d.Unmountable), orEmpty(d.Holders)
	return a.print(d, func(w io.Writer) {
		row(w, "dataset", d.Name)
		row(w, "owner", d.Owner)
		row(w, "readers", readersText(d))
		for _, u := range d.URIs {
			row(w, "uri", u)
		}
		row(w, "generation", d.Generation)
		row(w, "manifest", d.Manifest)
		row(w, "listed", when(d.ListedAt))
		syncRows(w, d)
		row(w, "objects", d.Objects)
		row(w, "folders", d.Directories)
		row(w, "bytes", api.HumanBytes(d.Bytes))
		row(w, "resident", fmt.Sprintf("%s (%d %%)", api.HumanBytes(d.ResidentBytes), percent(d.ResidentBytes, d.Bytes)))
		row(w, "shards", d.Shards)
		row(w, "holders", strings.Join(d.Holders, ", "))
		for _, v := range d.Views {
			row(w, "view", fmt.Sprintf("%s on %s: %s, %s", v.Dir, v.Node, v.View, v.Why))
		}
		if d.Load != nil {
			loadRows(w, d.Load)
		}
		if d.Replicas > 1 || d.Copies != nil {
			row(w, "replicas", copiesText(d))
		}
		if d.Evict != "" { // a controller of an earlier release says nothing
			row(w, "eviction", evictionText(d.Eviction))
		}
		pinRows(w, d.Name, d.Pins)
		unmountableRows(w, d.Unmountable)
	})
}

// syncRows say when a dataset is listed again, and why it was not.
func syncRows(w io.Writer, d *api.DatasetDetail) {
	if d.SyncEverySeconds > 0 {
		line := "every " + live.Every(d.SyncEverySeconds)
		if !d.NextSync.IsZero() {
			line += ", next " + when(d.NextSync)
		}
		row(w, "synced", line)
	}
	if s := d.LastSync; s != nil && s.Error != nil {
		row(w, "last sync", "failed "+when(s.At)+": "+s.Error.Message)
	}
}

// maxListed is how many failures or odd keys a table or message shows.
const maxListed = 20

func unmountableRows(w io.Writer, list []api.Unmountable) {
	if len(list) == 0 {
		return
	}
	row(w, "unmountable", len(list))
	for _, u := range list[:min(len(list), maxListed)] {
		row(w, "", u.Key+": "+u.Reason)
	}
}

func (a *app) printCertificate(c *api.Certificate) error {
	c.Failed, c.Unmountable = orEmpty(c.Failed), orEmpty(c.Unmountable)
	return a.print(c, func(w io.Writer) {
		row(w, "dataset", refName(api.DatasetRef{Name: c.Dataset, Generation: c.Generation}))
		row(w, "manifest", c.Manifest)
		row(w, "state", c.State)
		if c.Layout != "" {
			row(w, "layout", c.Layout+" on "+nodeList(c.Nodes))
		}
		if c.Selection != nil {
			row(w, "selection", selectionLine(c.Selection))
		}
		if c.Replicas > 1 {
			row(w, "replicas", c.Replicas)
		}
		row(w, "objects", fmt.Sprintf("%d of %d resident", c.ResidentObjects, c.Objects))
		row(w, "bytes", fmt.Sprintf("%s of %s resident", api.HumanBytes(c.ResidentBytes), api.HumanBytes(c.Bytes)))
		row(w, "fetched", fmt.Sprintf("%s in %d requests", api.HumanBytes(c.UFSBytes), c.UFSRequests))
		if r := c.Refetched; r != (api.Refetched{}) {
			row(w, "refetched", fmt.Sprintf("lost %s, retry %s, hedge %s, bypass %s",
				api.HumanBytes(r.Lost), api.HumanBytes(r.Retry), api.HumanBytes(r.Hedge), api.HumanBytes(r.Bypass)))
		}
		row(w, "checksums", checksums(c))
		for _, x := range c.Workers {
			row(w, "worker", workerHas(x))
		}
		row(w, "seconds", fmt.Sprintf("%.1f", c.Seconds))
		row(w, "failed", len(c.Failed))
		unmountableRows(w, c.Unmountable)
	})
}

// checksums says how the bytes of a certificate were checked.
func checksums(c *api.Certificate) string {
	if c.Deep {
		return fmt.Sprintf("%d of %d blocks read again and right, %s", c.Checksums.ReadBlocks, c.Checksums.Blocks, api.HumanBytes(c.Checksums.ReadBytes))
	}
	return fmt.Sprintf("%d blocks recorded", c.Checksums.Blocks)
}

func workerHas(x api.CertificateWorker) string {
	line := fmt.Sprintf("%s: %s in %d blocks of %d shards", live.ShortID(x.Worker), api.HumanBytes(x.Bytes), x.Blocks, x.Shards)
	if x.Whole {
		line += ", all of it"
	}
	if x.WrongBlocks > 0 {
		line += fmt.Sprintf(", %d wrong", x.WrongBlocks)
	}
	return line
}

// listFailures names what is not resident, on stderr.
func (a *app) listFailures(failed []api.Failure) {
	for _, f := range failed[:min(len(failed), maxListed)] {
		a.console.Note("%s: %s: %s", f.Path, f.Kind, f.Reason)
	}
	if n := len(failed) - maxListed; n > 0 {
		a.console.Note("and %d more objects: -o json lists them all", n)
	}
}

// certificateError is the error that a certificate stands for; nil for Ready.
func certificateError(c *api.Certificate, said error) error {
	name := refName(api.DatasetRef{Name: c.Dataset, Generation: c.Generation})
	switch {
	case c.State == "Ready" && len(c.Failed) == 0:
		return nil
	case len(c.Failed) == 0 && said != nil:
		return said
	case c.State == "Cancelled":
		return stoker.Errorf(stoker.KindIncomplete, "dataset", name, "the load was cancelled at %d of %d objects", c.ResidentObjects, c.Objects)
	}
	return stoker.Errorf(stoker.KindIncomplete, "dataset", name, "%d of %d objects are not resident: see the list of failed ones, or preload again",
		c.Objects-c.ResidentObjects, c.Objects)
}
