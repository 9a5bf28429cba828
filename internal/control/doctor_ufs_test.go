package control

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
)

// Somebody may look at a store; nobody in particular may not, since it sends
// requests to wherever he says. Nothing is registered and nothing kept open.
func TestDoctorUFS(t *testing.T) {
	c := openController(t, placement.NewMem(time.Now))
	c.beginRestrictions(t.Context())
	asked := 0
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++
		w.WriteHeader(http.StatusForbidden)
	}))
	defer store.Close()
	post := func(p api.Principal, body string) (int, string) {
		r := httptest.NewRequestWithContext(api.WithPrincipal(t.Context(), p), http.MethodPost, "/v1/doctor/ufs", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		rec := httptest.NewRecorder()
		c.routes().ServeHTTP(rec, r)
		return rec.Code, rec.Body.String()
	}
	good := `{"uri":"s3://bucket","endpoint":"` + store.URL + `","pathStyle":true,"anonymous":true}`
	somebody := api.Principal{Name: "ann", UID: 1000}
	if code, body := post(api.Principal{Name: "anonymous", UID: -1, Anonymous: true}, good); code != http.StatusForbidden || asked > 0 {
		t.Errorf("anonymous: %d %s, %d requests were sent", code, body, asked)
	}
	code, body := post(somebody, good)
	var rep api.DoctorReport
	if err := json.Unmarshal([]byte(body), &rep); err != nil || code != http.StatusOK || rep.Role != "controller" || asked == 0 {
		t.Fatalf("%d %s (%v)", code, body, err)
	}
	last := rep.Checks[len(rep.Checks)-1]
	if last.Name != "listing" || last.State != api.CheckFail || last.Hint == "" {
		t.Errorf("%+v", rep.Checks)
	}
	for _, bad := range []string{`{"uri":"ftp://x"}`, `{"uri":"bucket"}`, `{"uri":"s3://b","endpoint":"http://user:secret@host"}`, `{}`, `{"uri":"file://x"}`} {
		if code, body := post(somebody, bad); code != http.StatusBadRequest || strings.Contains(body, "secret") {
			t.Errorf("%s: %d %s", bad, code, body)
		}
	}
	if code, body := post(somebody, `{"uri":"file:///etc"}`); code != http.StatusForbidden || !strings.Contains(body, "--allow-file") {
		t.Errorf("a folder that is not allowed: %d %s", code, body)
	}
	for range probesAtOnce {
		c.probing <- struct{}{}
	}
	before := asked
	if code, body := post(somebody, good); code == http.StatusOK || asked != before || !strings.Contains(body, "try again") {
		t.Errorf("beyond the bound: %d %s", code, body)
	}
}
