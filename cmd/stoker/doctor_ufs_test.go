package main

import (
	"net/http"
	"testing"

	"stoker.dev"
	"stoker.dev/internal/api"
	"stoker.dev/ufs"
)

// doctor --ufs asks the controller alone, with the flags of dataset add, and
// prints its checks as those of a daemon are.
func TestDoctorUFS(t *testing.T) {
	rep := api.DoctorReport{Role: "controller", Checks: []api.Check{
		{Name: "reachable", State: api.CheckOK, Detail: "answers in 1.0 ms"},
		{Name: "if-match", State: api.CheckWarn, Detail: "is ignored", Hint: "nothing"},
	}}
	answer := func(w http.ResponseWriter, _ *http.Request) { api.WriteJSON(w, http.StatusOK, rep) }
	g := newRig(t, routes{"POST /v1/doctor/ufs": answer}, nil)
	g.want(0, "doctor", "--ufs", "s3://b/p", "--endpoint", "http://e", "--profile", "q", "--path-style")
	var l ufs.Location
	g.body("controller POST /v1/doctor/ufs", 0, &l)
	if l != (ufs.Location{URI: "s3://b/p", Endpoint: "http://e", Profile: "q", PathStyle: true}) {
		t.Errorf("%+v", l)
	}
	var d diagnosis
	g = newRig(t, routes{"POST /v1/doctor/ufs": answer}, nil)
	g.json(&d, 0, "doctor", "--ufs", "file:///x")
	if d.State != api.CheckWarn || len(d.Checks) != 2 || d.Checks[0].On != "ufs" || d.Checks[1].Name != "if-match" {
		t.Errorf("%+v", d)
	}
	rep.Checks[0].State = api.CheckFail
	g.want(5, "doctor", "--ufs", "s3://b")
	for _, args := range [][]string{{"--ufs", ""}, {"--ufs", "bucket"}, {"--ufs", "a=s3://b"}, {"--endpoint", "http://e"}, {"--anonymous"}, {"--ufs", "file:///x", "--profile", "p"}} {
		g.want(2, append([]string{"doctor"}, args...)...)
	}
	newRig(t, routes{"POST /v1/doctor/ufs": fail(stoker.KindDenied)}, nil).want(10, "doctor", "--ufs", "s3://b")
}
