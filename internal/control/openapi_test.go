package control

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"stoker.dev"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/ufs"
	"stoker.dev/workflows"
)

// spec is docs/openapi.yaml.
type spec struct {
	Paths      map[string]map[string]json.RawMessage `json:"paths"`
	Components struct {
		Schemas    map[string]*schema   `json:"schemas"`
		Responses  map[string]response  `json:"responses"`
		Parameters map[string]parameter `json:"parameters"`
	} `json:"components"`

	used map[string]bool // schemas that something refers to
}

type schema struct {
	Ref        string             `json:"$ref"`
	Type       string             `json:"type"`
	Format     string             `json:"format"`
	Pattern    string             `json:"pattern"`
	Enum       []string           `json:"enum"`
	Properties map[string]*schema `json:"properties"`
	Required   []string           `json:"required"`
	Items      *schema            `json:"items"`
	AllOf      []*schema          `json:"allOf"`
}

type content map[string]struct {
	Schema *schema `json:"schema"`
}

type response struct {
	Ref     string  `json:"$ref"`
	Content content `json:"content"`
}

type parameter struct {
	Ref  string `json:"$ref"`
	Name string `json:"name"`
	In   string `json:"in"`
}

type operation struct {
	OperationID string      `json:"operationId"`
	Parameters  []parameter `json:"parameters"`
	RequestBody struct {
		Content content `json:"content"`
	} `json:"requestBody"`
	Responses map[string]response `json:"responses"`
}

func readSpec(t *testing.T) *spec {
	t.Helper()
	body, err := os.ReadFile(filepath.Join("..", "..", "docs", "openapi.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	s := &spec{used: map[string]bool{}}
	if err := yaml.Unmarshal(body, s); err != nil {
		t.Fatal(err)
	}
	return s
}

// operations are those of the file by ServeMux pattern, with the parameters of
// their paths.
func (s *spec) operations(t *testing.T) map[string]*operation {
	t.Helper()
	out := map[string]*operation{}
	for path, item := range s.Paths {
		var shared []parameter
		for method, raw := range item {
			var err error
			if op := (&operation{}); method == "parameters" {
				err = json.Unmarshal(raw, &shared)
			} else {
				err = json.Unmarshal(raw, op)
				out[strings.ToUpper(method)+" "+path] = op
			}
			if err != nil {
				t.Fatalf("%s %s: %v", method, path, err)
			}
		}
		for method := range item {
			if op := out[strings.ToUpper(method)+" "+path]; op != nil {
				op.Parameters = append(op.Parameters, shared...)
			}
		}
	}
	return out
}

// flat is a schema without references, and with what it is joined from.
func (s *spec) flat(t *testing.T, x *schema) *schema {
	t.Helper()
	if x == nil {
		return &schema{}
	}
	if name, ok := strings.CutPrefix(x.Ref, "#/components/schemas/"); ok {
		to := s.Components.Schemas[name]
		if to == nil {
			t.Fatalf("no schema %s", name)
		}
		s.used[name] = true
		return s.flat(t, to)
	}
	if len(x.AllOf) == 0 {
		return x
	}
	out := &schema{Type: "object", Properties: map[string]*schema{}}
	for _, part := range x.AllOf {
		f := s.flat(t, part)
		for name, p := range f.Properties {
			out.Properties[name] = p
		}
		out.Required = append(out.Required, f.Required...)
	}
	return out
}

func (s *spec) response(r response) response {
	if name, ok := strings.CutPrefix(r.Ref, "#/components/responses/"); ok {
		return s.Components.Responses[name]
	}
	return r
}

// wire says which Go types an operation reads and answers with.
type wire struct {
	in, out any // nil: no body
	stream  bool
}

func wires() map[string]wire {
	return map[string]wire{
		"GET /v1/version":                   {out: api.VersionInfo{}},
		"GET /v1/doctor":                    {out: api.DoctorReport{}},
		"POST /v1/doctor/ufs":               {in: ufs.Location{}, out: api.DoctorReport{}},
		"GET /v1/status":                    {out: api.Status{}},
		"GET /v1/workers":                   {out: []api.WorkerInfo{}},
		"GET /v1/workers/{worker}/drain":    {out: api.DrainStatus{}},
		"PUT /v1/workers/{worker}/drain":    {in: api.Drain{}, out: api.DrainStatus{}},
		"DELETE /v1/workers/{worker}/drain": {out: api.DrainStatus{}},
		"GET /v1/datasets":                  {out: []api.DatasetInfo{}},
		"POST /v1/datasets":                 {in: api.AddDatasetRequest{}, out: api.Event{}, stream: true},
		"GET /v1/datasets/{name}":           {out: api.DatasetDetail{}},
		"PUT /v1/datasets/{name}/readers":   {in: api.ReadersRequest{}, out: api.DatasetDetail{}},
		"POST /v1/datasets/{name}/verify":   {out: api.Event{}, stream: true},
		"GET /v1/datasets/{name}/failed":    {out: api.FailurePage{}},
		"GET /v1/datasets/{name}/reads":     {out: []api.WorkerReads{}},
		"GET /v1/datasets/{name}/changes":   {out: api.DatasetChanges{}},
		"DELETE /v1/datasets/{name}":        {out: api.EvictReport{}},
		"POST /v1/datasets/{name}/sync":     {in: api.SyncRequest{}, out: api.Event{}, stream: true},
		"PUT /v1/datasets/{name}/schedule":  {in: api.ScheduleRequest{}, out: api.DatasetDetail{}},
		"PUT /v1/datasets/{name}/replicas":  {in: api.ReplicasRequest{}, out: api.DatasetDetail{}},
		"PUT /v1/datasets/{name}/eviction":  {in: api.EvictionRequest{}, out: api.DatasetDetail{}},
		"POST /v1/datasets/{name}/evict":    {in: api.EvictRequest{}, out: api.EvictReport{}},
		"POST /v1/datasets/{name}/load":     {in: api.SteerRequest{}, out: api.SteerReport{}},
		"PUT /v1/datasets/{name}/pin":       {in: api.PinRequest{}, out: api.Pin{}},
		"DELETE /v1/datasets/{name}/pin":    {out: []api.Pin{}},
		"GET /v1/jobs":                      {out: []api.JobLine{}},
		"POST /v1/jobs":                     {in: api.ClaimRequest{}, out: api.Event{}, stream: true},
		"GET /v1/jobs/{job}":                {out: api.JobStatus{}},
		"DELETE /v1/jobs/{job}":             {},
		"PATCH /v1/jobs/{job}":              {in: api.JobChange{}, out: api.JobStatus{}},
		"GET /v1/jobs/{job}/watch":          {out: api.Event{}, stream: true},
		"POST /v1/jobs/{job}/renew":         {in: api.RenewRequest{}},
	}
}

// noJSON are the routes whose answers are another's format.
var noJSON = []string{"GET /metrics", "GET /debug/pprof/{profile}"}

func TestRoutesAndOpenAPIAgree(t *testing.T) {
	s := readSpec(t)
	ops, routes := s.operations(t), map[string]bool{}
	for pattern := range (&Controller{}).patterns() {
		pattern = strings.ReplaceAll(pattern, "...}", "}")
		routes[pattern] = true
		if ops[pattern] == nil {
			t.Errorf("%s is not in docs/openapi.yaml", pattern)
		}
	}
	ids := map[string]string{}
	for pattern, op := range ops {
		if !routes[pattern] {
			t.Errorf("%s is in docs/openapi.yaml, and no route", pattern)
		}
		if other, twice := ids[op.OperationID]; twice || op.OperationID == "" {
			t.Errorf("%s: operationId %q is that of %s", pattern, op.OperationID, other)
		}
		ids[op.OperationID] = pattern
		var named []string
		for _, p := range op.Parameters {
			if name, ok := strings.CutPrefix(p.Ref, "#/components/parameters/"); ok {
				p = s.Components.Parameters[name]
			}
			if p.In == "path" {
				named = append(named, p.Name)
			}
		}
		var want []string
		for _, m := range regexp.MustCompile(`\{(\w+)\}`).FindAllStringSubmatch(pattern, -1) {
			want = append(want, m[1])
		}
		if !slices.Equal(named, want) {
			t.Errorf("%s: parameters %v, want %v", pattern, named, want)
		}
	}
	if len(wires())+len(noJSON) != len(routes) {
		t.Error("a route has no entry in wires")
	}
}

// Each field of what goes over the wire is in the file with its type, and
// nothing else is; what Go always writes is required.
func TestFieldsAndOpenAPIAgree(t *testing.T) {
	s := readSpec(t)
	ops := s.operations(t)
	for pattern, w := range wires() {
		op := ops[pattern]
		if op == nil {
			t.Errorf("%s is not in the file", pattern)
			continue
		}
		body := op.RequestBody.Content["application/json"].Schema
		if (body != nil) != (w.in != nil) {
			t.Errorf("%s: a request body in the file: %v, in the code: %v", pattern, body != nil, w.in != nil)
		} else if body != nil {
			s.compare(t, body, reflect.TypeOf(w.in), pattern+" request")
		}
		s.compare(t, s.response(op.Responses["default"]).Content["application/json"].Schema, reflect.TypeFor[api.ErrorBody](), pattern+" default")
		status, kind := "200", "application/json"
		if w.stream {
			kind = api.StreamType
		}
		if w.out == nil {
			status = "204"
		}
		r, ok := op.Responses[status]
		if !ok || len(op.Responses) != 2 {
			t.Errorf("%s: answers %v, want %s and default", pattern, op.Responses, status)
		} else if w.out != nil {
			s.compare(t, s.response(r).Content[kind].Schema, reflect.TypeOf(w.out), pattern)
		}
	}
	for _, pattern := range noJSON {
		if ops[pattern] != nil {
			s.compare(t, s.response(ops[pattern].Responses["default"]).Content["application/json"].Schema, reflect.TypeFor[api.ErrorBody](), pattern)
		}
	}
	for name := range s.Components.Schemas {
		if !s.used[name] {
			t.Errorf("schema %s is used by no operation", name)
		}
	}
	var kinds []string
	for k := range 64 {
		if name := stoker.Kind(k).String(); k == 0 || name != "internal" {
			kinds = append(kinds, name)
		}
	}
	if got := s.Components.Schemas["ErrorBody"].Properties["kind"].Enum; !slices.Equal(got, kinds) {
		t.Errorf("kinds %v, want %v", got, kinds)
	}
}

// compare reports where a schema and a Go type differ.
func (s *spec) compare(t *testing.T, x *schema, goes reflect.Type, at string) {
	t.Helper()
	if x == nil {
		t.Errorf("%s: no schema", at)
		return
	}
	x = s.flat(t, x)
	for goes.Kind() == reflect.Pointer {
		goes = goes.Elem()
	}
	want := ""
	switch {
	case goes == reflect.TypeFor[time.Time]():
		if x.Type != "string" || x.Format != "date-time" {
			t.Errorf("%s: %s %s, want a date-time", at, x.Type, x.Format)
		}
		return
	case goes == reflect.TypeFor[stoker.ID](), goes == reflect.TypeFor[stoker.Incarnation](), goes.Kind() == reflect.String:
		want = "string"
	case goes.Kind() == reflect.Bool:
		want = "boolean"
	case goes.Kind() == reflect.Float64:
		want = "number"
	case goes.Kind() >= reflect.Int && goes.Kind() <= reflect.Uint64:
		want = "integer"
	case goes.Kind() == reflect.Slice:
		if x.Type != "array" {
			t.Errorf("%s: %q, want an array", at, x.Type)
			return
		}
		s.compare(t, x.Items, goes.Elem(), at+"[]")
		return
	case goes.Kind() == reflect.Struct:
		s.compareFields(t, x, goes, at)
		return
	default:
		t.Fatalf("%s: what is a %v on the wire?", at, goes)
	}
	if x.Type != want {
		t.Errorf("%s: %q, want %s", at, x.Type, want)
	}
}

func (s *spec) compareFields(t *testing.T, x *schema, goes reflect.Type, at string) {
	t.Helper()
	there := map[string]bool{}
	for _, f := range reflect.VisibleFields(goes) {
		tag := f.Tag.Get("json")
		if f.Anonymous && tag == "" {
			continue // its own fields come by themselves
		}
		name, options, _ := strings.Cut(tag, ",")
		there[name] = true
		p := x.Properties[name]
		if p == nil {
			t.Errorf("%s: field %q is not in the schema", at, name)
			continue
		}
		always := !strings.Contains(options, "omit")
		if listed := slices.Contains(x.Required, name); listed != always {
			t.Errorf("%s: %q required in the schema: %v, in the code: %v", at, name, listed, always)
		}
		s.compare(t, p, f.Type, at+"."+name)
	}
	for name := range x.Properties {
		if !there[name] {
			t.Errorf("%s: the schema has %q, the code has not", at, name)
		}
	}
}

// What the real handlers answer is what the file says.
func TestAnswersAreAsInOpenAPI(t *testing.T) {
	flows, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	w.register(t, "pets", 1000, number(1))
	w.join(t, 1, api.ManifestHolding{Manifest: number(1), Bytes: 700, Holders: []string{"job a"}})
	flows.add(workflows.JobState{State: api.JobReady, Outcomes: []workflows.Outcome{{State: api.JobReady}}, Input: workflows.JobInput{
		Job: "a", Owner: "ann", Submitted: time.Now().UTC(), Datasets: []workflows.JobDataset{{Name: "pets", Generation: 1, Manifest: number(1), Bytes: 1000}}}})
	s := readSpec(t)
	ops := s.operations(t)
	for path, c := range map[string]struct {
		pattern string
		status  int
	}{
		"/v1/version":        {"/v1/version", 200},
		"/v1/doctor":         {"/v1/doctor", 200},
		"/v1/status":         {"/v1/status", 200},
		"/v1/workers":        {"/v1/workers", 200},
		"/v1/datasets":       {"/v1/datasets", 200},
		"/v1/datasets/none":  {"/v1/datasets/{name}", 404},
		"/v1/jobs":           {"/v1/jobs", 200},
		"/v1/jobs/a":         {"/v1/jobs/{job}", 200},
		"/v1/jobs/a/watch":   {"/v1/jobs/{job}/watch", 200},
		"/v1/jobs/none":      {"/v1/jobs/{job}", 404},
		"/metrics":           {"/metrics", 200},
		"/debug/pprof/heap":  {"/debug/pprof/{profile}", 200},
		"/debug/pprof/trace": {"/debug/pprof/{profile}", 0}, // by TCP
	} {
		got := answer{}
		if c.status == 0 {
			c.status = http.StatusNotFound
			got = w.get(t, http.DefaultClient, w.tcp+path, watchedToken)
		} else {
			got = w.get(t, w.socket, "http://c"+path, "")
		}
		if got.status != c.status {
			t.Errorf("%s: %d: %s", path, got.status, got.body)
			continue
		}
		kind, _, _ := strings.Cut(got.kind, ";")
		r, ok := ops["GET "+c.pattern].Responses[strconv.Itoa(got.status)]
		if !ok {
			r = ops["GET "+c.pattern].Responses["default"]
		}
		as, ok := s.response(r).Content[kind]
		if !ok {
			t.Errorf("%s: answered with %s, which the file does not have", path, kind)
		}
		if kind != "application/json" && kind != api.StreamType {
			continue
		}
		for line := range strings.Lines(string(got.body)) {
			var v any
			if err := json.Unmarshal([]byte(line), &v); err != nil {
				t.Errorf("%s: %v", path, err)
			}
			for _, bad := range s.check(t, as.Schema, v, path) {
				t.Error(bad)
			}
		}
	}
}

// check returns where a JSON value is not as its schema says.
func (s *spec) check(t *testing.T, x *schema, v any, at string) (bad []string) {
	t.Helper()
	x = s.flat(t, x)
	wrong := func() []string {
		return []string{fmt.Sprintf("%s: %v is no %s %s %v", at, v, x.Type, x.Pattern, x.Enum)}
	}
	switch v := v.(type) {
	case map[string]any:
		if x.Type != "object" {
			return wrong()
		}
		for _, name := range x.Required {
			if _, ok := v[name]; !ok {
				bad = append(bad, at+": no "+name)
			}
		}
		for name, field := range v {
			if x.Properties[name] == nil {
				bad = append(bad, at+": "+name+" is not in the schema")
				continue
			}
			bad = append(bad, s.check(t, x.Properties[name], field, at+"."+name)...)
		}
	case []any:
		if x.Type != "array" {
			return wrong()
		}
		for _, e := range v {
			bad = append(bad, s.check(t, x.Items, e, at+"[]")...)
		}
	case string:
		if x.Type != "string" || len(x.Enum) > 0 && !slices.Contains(x.Enum, v) || x.Pattern != "" && !regexp.MustCompile(x.Pattern).MatchString(v) {
			return wrong()
		}
	case float64:
		if x.Type != "number" && (x.Type != "integer" || v != math.Trunc(v)) {
			return wrong()
		}
	case bool:
		if x.Type != "boolean" {
			return wrong()
		}
	default: // null
		return wrong()
	}
	return bad
}
