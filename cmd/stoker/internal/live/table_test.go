package live

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestWidthAndCut(t *testing.T) {
	for _, c := range []struct {
		text  string
		width int
		at    int
		cut   string
	}{
		{"plain", 5, 5, "plain"}, {"plain", 5, 4, "pla…"}, {"plain", 5, 1, "…"}, {"plain", 5, 0, ""},
		{"データ", 6, 6, "データ"}, {"データ", 6, 5, "デー…"}, {"データ", 6, 4, "デ…"}, // a wide rune is not cut in half
		{"Zürich", 6, 4, "Zür…"}, {"e\u0301te", 3, 2, "e\u0301…"}, {"🚀x", 3, 2, "…"},
	} {
		if got := Width(c.text); got != c.width {
			t.Errorf("Width(%q) = %d, want %d", c.text, got, c.width)
		}
		if got := Cut(c.text, c.at); got != c.cut || Width(got) > c.at {
			t.Errorf("Cut(%q, %d) = %q, want %q", c.text, c.at, got, c.cut)
		}
	}
}

func hostileTable() *Table {
	t := &Table{Empty: "-", Columns: []Column{{Head: "NAME", Min: 8}, {Head: "STATE"}, {Head: "BYTES", Right: true}, {Head: "URIS", Min: 8}}}
	t.Row("imagenet", State("Ready"), "1.2 GiB", "s3://datasets/imagenet")
	t.Row("データセット", "Warming", "900 B", "s3://bücket/präfix")
	t.Row(strings.Repeat("long-name-", 9), "Failed", "", "s3://"+strings.Repeat("x", 70))
	t.Row("\x1b[2J\x1b]0;evil\a", "line\nbreak", "tab\t", "bad\xff\u202eutf")
	return t
}

// The table as a person sees it: aligned, cut with an ellipsis, nothing that
// a terminal would act on.
func TestTableGolden(t *testing.T) {
	want := []string{
		`NAME                         STATE            BYTES  URIS`,
		`imagenet                     Ready          1.2 GiB  s3://datasets/imagenet`,
		`データセット                 Warming          900 B  s3://bücket/präfix`,
		`long-name-long-name-long-n…  Failed               -  s3://xxxxxxxxxxxxxxxxxxxxx…`,
		`\x1b[2J\x1b]0;evil\x07       line\x0abreak  tab\x09  bad\xff\xe2\x80\xaeutf`,
	}
	got := hostileTable().Lines(80, false)
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			t.Errorf("line %d:\n got %q\nwant %q", i, strings.Join(got[i:min(i+1, len(got))], ""), want[i])
		}
	}
}

func TestTableKeepsWithinAnyWidth(t *testing.T) {
	for width := 1; width < 160; width++ {
		for _, color := range []bool{false, true} {
			for _, line := range hostileTable().Lines(width, color) {
				if n := Width(plain(line)); n > width {
					t.Fatalf("width %d, colour %v: %d cells: %q", width, color, n, line)
				}
			}
		}
	}
	wide := hostileTable().Lines(0, false)
	if !strings.Contains(wide[3], strings.Repeat("long-name-", 9)) || strings.Contains(strings.Join(wide, ""), "…") {
		t.Errorf("something was cut without a width: %q", wide)
	}
}

// plain takes colours away.
func plain(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		if s[i] == 0x1b {
			i += strings.IndexByte(s[i:], 'm') + 1
			continue
		}
		_, n := utf8.DecodeRuneInString(s[i:])
		b.WriteString(s[i : i+n])
		i += n
	}
	return b.String()
}

func TestBars(t *testing.T) {
	for _, c := range []struct {
		used, reserved, whole int64
		unicode               bool
		want                  string
	}{
		{0, 0, 100, false, "........"}, {100, 0, 100, false, "########"}, {99, 0, 100, false, "#######."}, {1, 0, 1 << 40, false, "#......."},
		{50, 25, 100, false, "####++.."}, {90, 90, 100, false, "#######+"}, {200, 5, 100, false, "########"}, {5, 5, 0, false, "........"}, {-5, -5, 100, false, "........"},
		{50, 0, 100, true, "████░░░░"}, {53, 25, 100, true, "████▏▒▒░"}, {1, 0, 1000, true, "▏░░░░░░░"}, {999, 0, 1000, true, "███████▉"},
	} {
		got := Blocks(c.unicode).Bar(c.used, c.reserved, c.whole, 8)
		if got.Text != c.want {
			t.Errorf("%+v: %q", c, got.Text)
		}
		if plain(got.Paint(got.Text)) != got.Text {
			t.Errorf("%+v: colours change it: %q", c, got.Paint(got.Text))
		}
	}
}
