package arch

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "stoker.dev"

// layers says for each tree which trees of this module it may import. The
// longest prefix that matches counts; a new folder must be entered here.
var layers = map[string][]string{
	"":                              {},
	"planner":                       {""},
	"planner/order":                 {""},
	"ufs":                           {""},
	"ufs/ufstest":                   {"", "ufs", "internal/testenv"},
	"ufs/memufs":                    {"", "ufs"},
	"ufs/s3ufs":                     {"", "ufs"},
	"ufs/posixufs":                  {"", "ufs"},
	"ufs/budget":                    {""},
	"ufs/budget/budgettest":         {"", "ufs/budget"},
	"ufs/guard":                     {"", "ufs", "ufs/budget"},
	"ufs/folder":                    {"", "ufs"},
	"ufs/mounts":                    {"", "ufs", "ufs/*"},
	"cache/listing":                 {"", "ufs"},
	"cache/manifest":                {"", "ufs", "cache/listing"},
	"cache/evict":                   {""},
	"cache/prefetch":                {"planner/order"},
	"cache/store":                   {"", "internal/fault"},
	"cache/placement":               {""},
	"cache/placement/placementtest": {"", "cache/placement"},
	"cache/placement/redisplace":    {"", "cache/placement", "ufs/budget"},
	"cache/peer":                    {"", "cache/store", "internal/api"},
	"cache":                         {"", "ufs", "ufs/guard", "planner", "planner/order", "cache/*", "internal/api"},
	"fuse":                          {""},
	"fuse/tree":                     {"", "fuse", "cache/manifest"},
	"fuse/erofs":                    {"", "cache/manifest"},
	"fuse/shardfs":                  {"", "fuse", "fuse/erofs", "cache/manifest"},
	"fuse/mount":                    {"", "fuse"},
	"fuse/hold":                     {""},
	"activities":                    {"", "ufs", "ufs/*", "planner", "cache", "cache/*", "internal/api"},
	"workflows":                     {"", "activities", "cache/manifest", "internal/api"},
	"internal/api":                  {"", "ufs"},
	"internal/arch":                 {},
	"scripts":                       {},
	"internal/metrics":              {"", "internal/api"},
	"internal/e2e":                  {"", "internal/api", "internal/testenv"},
	"internal/testenv":              {""},
	"internal/worker":               {"", "ufs", "ufs/*", "planner", "planner/order", "cache", "cache/*", "fuse", "fuse/*", "internal/api", "internal/metrics"},
	"internal/control":              {"", "ufs", "ufs/*", "planner", "planner/order", "cache", "cache/*", "activities", "workflows", "internal/api", "internal/metrics"},
	"cmd":                           {"", "*"},
	"cmd/stoker":                    {"", "internal/api", "planner/order", "ufs", "cmd/stoker/*", "cmd/internal/man", "cmd/internal/config"},
	"cmd/stoker/internal/live":      {"", "internal/api"},
	"cmd/stoker/internal/slurm":     {"", "internal/api", "planner/order"},
	"cmd/internal/man":              {},
	"cmd/internal/config":           {},
}

// homes says which tree alone may import a dependency outside its tests.
var homes = map[string][]string{
	"github.com/hanwen/go-fuse/":       {"fuse"},
	"github.com/aws/":                  {"ufs/s3ufs"},
	"github.com/redis/":                {"cache/placement/redisplace"},
	"github.com/klauspost/reedsolomon": {"cache/stripe"},
	"github.com/maypok86/otter":        {"cache/evict"},
	"github.com/spf13/":                {"cmd"},
	"github.com/prometheus/":           {"internal/metrics"},
	"go.temporal.io/":                  {"workflows", "activities", "cmd"},
}

type pkg struct {
	ImportPath string
	Name       string
	Doc        string
	Imports    []string
	GoFiles    []string
}

func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Name,Doc,Imports,GoFiles", module+"/...")
	cmd.Dir = filepath.Join("..", "..")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 5 {
		t.Fatalf("go list found %d packages: the test does not see the module", len(pkgs))
	}
	return pkgs
}

func rel(importPath string) string {
	return strings.TrimPrefix(strings.TrimPrefix(importPath, module), "/")
}

func inside(path, tree string) bool {
	return path == tree || strings.HasPrefix(path, tree+"/")
}

// rule finds the entry of layers for a package.
func rule(path string) ([]string, bool) {
	for p := path; ; p = p[:max(strings.LastIndex(p, "/"), 0)] {
		if allowed, ok := layers[p]; ok {
			return allowed, p != "" || path == ""
		}
		if p == "" {
			return nil, false
		}
	}
}

func allows(allowed []string, path string) bool {
	for _, a := range allowed {
		if tree, below := strings.CutSuffix(a, "*"); below && strings.HasPrefix(path, tree) && path != "" {
			return true
		}
		if a == path {
			return true
		}
	}
	return false
}

// check returns one line per broken rule.
func check(pkgs []pkg) []string {
	var bad []string
	for _, p := range pkgs {
		path := rel(p.ImportPath)
		allowed, ok := rule(path)
		if !ok {
			bad = append(bad, path+": not in the map of layers; enter it there")
			continue
		}
		for _, imp := range p.Imports {
			if imp == module || strings.HasPrefix(imp, module+"/") {
				if to := rel(imp); !allows(allowed, to) {
					bad = append(bad, path+" must not import "+to)
				}
			}
			for dep, trees := range homes {
				if !strings.HasPrefix(imp+"/", dep) && !strings.HasPrefix(imp, dep) {
					continue
				}
				home := false
				for _, tree := range trees {
					home = home || inside(path, tree)
				}
				if !home {
					bad = append(bad, path+" must not import "+imp+": its home is "+strings.Join(trees, ", "))
				}
			}
		}
	}
	return bad
}

func TestLayers(t *testing.T) {
	for _, line := range check(list(t)) {
		t.Error(line)
	}
}

// The rules must bite: each seeded violation has to be found.
func TestSeededViolations(t *testing.T) {
	for _, c := range []struct{ from, to string }{
		{"planner", module + "/ufs"},
		{"ufs/s3ufs", module + "/cache"},
		{"cache/store", module + "/cache"},
		{"cache/peer", module + "/cache"},
		{"cache", "github.com/hanwen/go-fuse/v2/fuse"},
		{"cache", "github.com/redis/go-redis/v9"},
		{"fuse/tree", module + "/cache"},
		{"workflows", module + "/cache"},
		{"internal/control", "go.temporal.io/sdk/client"},
		{"cmd/stoker", module + "/cache"},
		{"cmd/stoker", module + "/internal/metrics"},
		{"internal/worker", "github.com/prometheus/client_golang/prometheus"},
		{"newfolder", "fmt"},
	} {
		if len(check([]pkg{{ImportPath: module + "/" + c.from, Imports: []string{c.to}}})) == 0 {
			t.Errorf("%s importing %s was not found", c.from, c.to)
		}
	}
}

// bin/stoker stays small: of all homes it needs its flags alone, however far
// away.
func TestStokerIsLean(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", module+"/cmd/stoker")
	cmd.Dir = filepath.Join("..", "..")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil || !strings.Contains(string(out), module+"/internal/api\n") {
		t.Fatalf("go list: %v", err)
	}
	for imp := range strings.Lines(string(out)) {
		for dep := range homes {
			if dep != "github.com/spf13/" && strings.HasPrefix(imp, dep) {
				t.Errorf("cmd/stoker needs %s", strings.TrimSpace(imp))
			}
		}
		if strings.HasPrefix(imp, "net/http/pprof") {
			t.Error("cmd/stoker needs net/http/pprof")
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range list(t) {
		if len(p.GoFiles) > 0 && len(p.Doc) < 20 {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

// docs/adr files are numbered without gaps or doubles.
func TestADRsAreNumbered(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "..", "docs", "adr", "*.md"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no ADRs: %v", err)
	}
	seen := map[string]string{}
	for _, f := range files {
		n := filepath.Base(f)[:4]
		if other, twice := seen[n]; twice {
			t.Errorf("%s and %s share a number", f, other)
		}
		seen[n] = f
	}
}
