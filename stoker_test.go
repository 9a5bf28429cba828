package stoker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
)

func TestKindsSurviveTheirNames(t *testing.T) {
	for k := KindInternal; k <= KindIncomplete; k++ {
		if got := ParseKind(k.String()); got != k {
			t.Errorf("ParseKind(%q) = %v, want %v", k.String(), got, k)
		}
	}
	if got := ParseKind("no such kind"); got != KindInternal {
		t.Errorf("unknown name gives %v, want internal", got)
	}
	if got := Kind(200).String(); got != "internal" {
		t.Errorf("unknown kind prints %q", got)
	}
}

func TestKindOf(t *testing.T) {
	stale := Errorf(KindStale, "s3.get", "a/b", "ETag changed")
	for _, c := range []struct {
		name string
		err  error
		want Kind
	}{
		{"direct", stale, KindStale},
		{"wrapped", fmt.Errorf("load: %w", stale), KindStale},
		{"outermost wins", Errorf(KindDenied, "x", "", "%w", stale), KindDenied},
		{"deadline", context.DeadlineExceeded, KindTransient},
		{"foreign", errors.New("boom"), KindInternal},
	} {
		if got := KindOf(c.err); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	if got, want := stale.Error(), "s3.get a/b: ETag changed"; got != want {
		t.Errorf("message %q, want %q", got, want)
	}
}

func TestIDsInJSON(t *testing.T) {
	type both struct {
		ID  ID
		Inc Incarnation
	}
	in := both{Inc: NewIncarnation()}
	in.ID[0], in.ID[31] = 0xab, 0x01
	body, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out both
	if err := json.Unmarshal(body, &out); err != nil || out != in {
		t.Fatalf("%s came back as %v (%v)", body, out, err)
	}
	for _, bad := range []string{"", "ab", "zz" + in.ID.String()[2:], in.ID.String() + "00"} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("ParseID(%q) was accepted", bad)
		}
	}
	for _, bad := range []string{`"1"`, `"zzzzzzzzzzzzzzzz"`, `"00000000000000000"`} {
		if err := json.Unmarshal([]byte(bad), &out.Inc); err == nil {
			t.Errorf("incarnation %s was accepted", bad)
		}
	}
}
