package main

import (
	"net/http"
	"reflect"
	"strings"
	"testing"

	"stoker.dev/internal/api"
)

// The order of a job's samples reaches its claim and each of its mounts, written as
// all write it, with the files that it is the order of.
func TestSamplerIsClaimedAndMounted(t *testing.T) {
	const spec, want = "pytorch:world=8,seed=42", "pytorch:seed=42,world=8"
	st := job(api.JobReady)
	st.Sampler = want
	st.Datasets[0].Selection = &api.Selection{Paths: []string{"train"}}
	g := submitRig(t, st)
	g.want(0, "submit", "--dataset", "data@3", "--path", "train", "--sampler", spec, "--", "true")
	var claim api.ClaimRequest
	g.body("controller POST /v1/jobs", 0, &claim)
	var m api.MountRequest
	g.body("node POST /v1/mounts", 0, &m)
	if claim.Sampler != want || m.Sampler != want || !reflect.DeepEqual(m.Selection, st.Datasets[0].Selection) {
		t.Errorf("claimed %q, mounted %q of %v", claim.Sampler, m.Sampler, m.Selection)
	}
	g = newRig(t, routes{"POST /v1/jobs": events(lines(st)...), "GET /v1/jobs/{job}": answer(st)}, routes{"POST /v1/mounts": answer(api.MountInfo{})})
	g.want(0, "claim", "--job-id", "17", "--dataset", "data", "--sampler", spec)
	claim = api.ClaimRequest{}
	if g.body("controller POST /v1/jobs", 0, &claim); claim.Sampler != want {
		t.Errorf("claimed %q", claim.Sampler)
	}
	g.want(0, "status", "my.job")
	if !strings.Contains(g.stdout.String(), "sampler") || !strings.Contains(g.stdout.String(), want) {
		t.Errorf("status does not tell of it:\n%s", g.stdout.String())
	}
	t.Chdir(g.dir)
	g.want(0, "mount", "data", "here", "--sampler", spec, "--path", "train", "--include", "*.jpg")
	m = api.MountRequest{}
	if g.body("node POST /v1/mounts", 0, &m); m.Sampler != want || m.Selection == nil || len(m.Selection.Paths) != 1 || len(m.Selection.Include) != 1 {
		t.Errorf("mounted %+v", m)
	}
}

// What cannot be an order is refused before anything is asked for, with what to write.
func TestSamplersThatAreRefused(t *testing.T) {
	never := func(http.ResponseWriter, *http.Request) { t.Error("it was asked for") }
	g := newRig(t, routes{"POST /v1/jobs": never}, routes{"POST /v1/mounts": never})
	for spec, says := range map[string]string{"": "write pytorch:seed=0,world=8", "pytorch:seed=0": "lacks world=N", "tf:seed=0": "is not known", "pytorch:world=2,epoch=1": `the key "epoch"`} {
		for _, args := range [][]string{{"submit", "--dataset", "data", "--sampler", spec, "--", "true"}, {"claim", "--job-id", "1", "--dataset", "data", "--sampler", spec}, {"mount", "data", "/nowhere", "--sampler", spec}} {
			g.want(2, args...)
			g.says(says)
		}
	}
	g.want(2, "mount", "data", "/nowhere", "--path", "train")
	g.says("go with --sampler")
}
