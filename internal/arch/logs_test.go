package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// aboutTheDaemon are the log lines that are about no one job or dataset.
var aboutTheDaemon = []string{
	"limit of open files stays as it is", "store not closed well", "dead mounts could not be cleared", "dead mounts could not be listed", "views of the last life cannot be read", "the holder keeps a descriptor that nobody knows", "files of an earlier life stay",
	"not registered: the placement index does not answer", "not all that is here was announced", "lease not renewed: the placement index does not answer",
	"search attributes are missing: let an operator of Temporal add StokerDataset (KeywordList), StokerJob and StokerPhase (Keyword)",
	"search attributes are gone; going on without them",
	"a restart would scrub some shards again", "what loads have cost is not written down: a restart would forget it",
	"the cache folder has less space than was promised",
	"a shard of no dataset cannot be removed", "removed shards that belong to no dataset known here",
	"what nobody names stays in the manifest store for now", "what nobody named any more was removed from the manifest store",
	"pins are not renewed, and no lease ends: the manifest store does not say who pinned what",
	"how datasets are evicted is not told anew",
	"the cache folder has less space than was promised", "this worker is being drained", "this worker is drained no more", "a worker is drained", "a worker is drained no more",
	"copies are not counted: the manifest store does not say how many there are to be",
	"nothing is moved off workers that are drained: Temporal does not say who wants how many copies",
	"leases are not renewed", "leases are not renewed: Temporal does not say who holds what", "Temporal does not answer; trying again",
}

// named reports whether a call of a logger says whose line it is: by its own
// attributes, or by those of the logger.
func named(call *ast.CallExpr, with map[string]string) bool {
	logger := types.ExprString(call.Fun.(*ast.SelectorExpr).X)
	if to, ok := with[logger]; ok {
		logger = to
	}
	text := logger
	for _, a := range call.Args[1:] {
		text += " " + types.ExprString(a)
	}
	for _, mark := range []string{`"job"`, `"dataset"`, `"manifest"`, "logOf(", ".log()", "append(named,", ".named()"} {
		if strings.Contains(text, mark) {
			return true
		}
	}
	return false
}

// unnamed returns the messages of a file's log lines that name neither.
func unnamed(f *ast.File) (bad []string) {
	with := map[string]string{} // loggers that were made with attributes
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if len(n.Lhs) == 1 && len(n.Rhs) == 1 {
				with[types.ExprString(n.Lhs[0])] = types.ExprString(n.Rhs[0])
			}
		case *ast.CallExpr:
			sel, ok := n.Fun.(*ast.SelectorExpr)
			if !ok || len(n.Args) == 0 || !slices.Contains([]string{"Debug", "Info", "Warn", "Error"}, sel.Sel.Name) || types.ExprString(sel.X) == "api" { // api.Warn makes a check
				return true
			}
			lit, ok := n.Args[0].(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			if message, err := strconv.Unquote(lit.Value); err == nil && !named(n, with) && !slices.Contains(aboutTheDaemon, message) {
				bad = append(bad, message)
			}
		}
		return true
	})
	return bad
}

// Every log line about a claim, load, lease or view names its job or dataset.
func TestLogLinesAreNamed(t *testing.T) {
	lines := 0
	for _, dir := range []string{"activities", "workflows", "cache", "internal/worker", "internal/control"} {
		files, err := filepath.Glob(filepath.Join("..", "..", dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v", dir, err)
		}
		for _, path := range files {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			body, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, body, 0)
			if err != nil {
				t.Fatal(err)
			}
			lines += strings.Count(string(body), "Warn(")
			for _, message := range unnamed(f) {
				t.Errorf("%s: %q says neither job nor dataset", path, message)
			}
		}
	}
	if lines < 10 {
		t.Errorf("%d warnings found: the test does not see the code", lines)
	}
}

func TestUnnamedLogLinesAreFound(t *testing.T) {
	for src, want := range map[string]int{
		`c.o.Log.Warn("x", "error", err)`:                                                                 1,
		`c.o.Log.Warn("x", "job", job, "error", err)`:                                                     0,
		`s.log().Error("x")`:                                                                              0,
		`log := a.o.Log.With("dataset", d); log.Warn("x", "error", err)`:                                  0,
		`log := a.o.Log.With("worker", w); log.Warn("x", "error", err)`:                                   1,
		`v.log.Info("dead mounts could not be cleared", "dead mounts could not be listed", "error", err)`: 0,
		`workflow.GetLogger(ctx).Warn("x", append(named, "plan", id)...)`:                                 0,
		`workflow.GetLogger(ctx).Warn("x", append(others, "plan", id)...)`:                                1,
	} {
		f, err := parser.ParseFile(token.NewFileSet(), "x.go", "package x\nfunc f() { "+src+" }", 0)
		if err != nil {
			t.Fatal(err)
		}
		if bad := unnamed(f); len(bad) != want {
			t.Errorf("%s: %v, want %d", src, bad, want)
		}
	}
}
