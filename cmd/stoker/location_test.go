package main

import (
	"encoding/json"
	"strings"
	"testing"

	"stoker.dev/internal/api"
)

// Plain flags are for all stores, FOLDER=VALUE for one of them, which wins.
func TestDatasetAddPerRoot(t *testing.T) {
	detail := api.DatasetDetail{DatasetInfo: api.DatasetInfo{Name: "data", Generation: 1}, Unmountable: []api.Unmountable{}}
	for name, c := range map[string]struct{ args, want string }{
		"for all": {"a=s3://x b=s3://y --profile p --endpoint http://e --region r --path-style --anonymous",
			`[{"folder":"a","uri":"s3://x","endpoint":"http://e","region":"r","pathStyle":true,"anonymous":true,"profile":"p"},
			  {"folder":"b","uri":"s3://y","endpoint":"http://e","region":"r","pathStyle":true,"anonymous":true,"profile":"p"}]`},
		"one without a folder": {"s3://x --profile p --endpoint http://e/a=b", `[{"uri":"s3://x","endpoint":"http://e/a=b","profile":"p"}]`},
		"its own wins, in any order": {"a=s3://x b/c=s3://y --profile b/c=q --profile p --endpoint a=https://e --region b/c=r --path-style=a --anonymous=b/c",
			`[{"folder":"a","uri":"s3://x","endpoint":"https://e","pathStyle":true,"profile":"p"},{"folder":"b/c","uri":"s3://y","region":"r","anonymous":true,"profile":"q"}]`},
		"folders take none": {"a=s3://x b=file:///y --profile p --path-style", `[{"folder":"a","uri":"s3://x","pathStyle":true,"profile":"p"},{"folder":"b","uri":"file:///y"}]`},
		"back to none":      {"a=s3://x b=s3://y --profile p --profile b=", `[{"folder":"a","uri":"s3://x","profile":"p"},{"folder":"b","uri":"s3://y"}]`},
		"off":               {"a=s3://x --anonymous=false", `[{"folder":"a","uri":"s3://x"}]`},
	} {
		g := newRig(t, routes{"POST /v1/datasets": events(api.Event{Dataset: &detail})}, nil)
		g.want(0, append([]string{"dataset", "add", "data"}, strings.Fields(c.args)...)...)
		var req api.AddDatasetRequest
		g.body("controller POST /v1/datasets", 0, &req)
		var want []api.AddRoot
		if err := json.Unmarshal([]byte(c.want), &want); err != nil {
			t.Fatal(err)
		}
		for i, r := range req.Roots {
			if len(want) != len(req.Roots) || r != want[i] {
				t.Errorf("%s: root %d is %+v, want %+v", name, i, r, want)
			}
		}
	}
}

// A flag that no root takes is an error, never ignored.
func TestDatasetAddFlagsThatFitNoRoot(t *testing.T) {
	for args, says := range map[string]string{
		"a=s3://x --profile b=p":                    `no URI is joined under the folder "b"`,
		"a=s3://x --anonymous=b":                    `no URI is joined under the folder "b"`,
		"a=s3://x --endpoint x=http://e":            `no URI is joined under the folder "x"`,
		"a=s3://x --profile p --profile q":          "given twice",
		"a=s3://x --profile a=p --profile a=q":      "given twice",
		"file:///x --profile p":                     "a file:// folder has none",
		"file:///x --anonymous":                     "a file:// folder has none",
		"a=s3://x b=file:///y --endpoint b=http://": "a file:// folder has none",
	} {
		g := newRig(t, routes{}, nil)
		g.want(2, append([]string{"dataset", "add", "data"}, strings.Fields(args)...)...)
		g.says(says)
	}
}
