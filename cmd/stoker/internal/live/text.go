// Package live shows what a cluster does: tables that fit a width, bars, and
// the view that `stoker status --watch` draws again and again. It asks nobody
// itself and never writes what a name could make a terminal do. Its functions
// may be called from any goroutine; a Table or a view belongs to one.
package live

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Printable makes any string fit for a table or message: bytes that a terminal
// would act on, and those that are no text, become \xNN.
func Printable(s string) string {
	if utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 || !unicode.IsPrint(r) {
			for _, x := range []byte(s[i : i+n]) {
				fmt.Fprintf(&b, `\x%02x`, x)
			}
		} else {
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// wide are the ranges that terminals draw two cells wide (East Asian Wide and
// Fullwidth, and the emoji).
var wide = [...][2]rune{
	{0x1100, 0x115f}, {0x231a, 0x231b}, {0x2e80, 0x303e}, {0x3041, 0x33ff}, {0x3400, 0x4dbf}, {0x4e00, 0x9fff},
	{0xa000, 0xa4cf}, {0xa960, 0xa97f}, {0xac00, 0xd7a3}, {0xf900, 0xfaff}, {0xfe30, 0xfe6f}, {0xff00, 0xff60},
	{0xffe0, 0xffe6}, {0x1b000, 0x1b2ff}, {0x1f300, 0x1f64f}, {0x1f680, 0x1f6ff}, {0x1f900, 0x1f9ff},
	{0x1fa70, 0x1faff}, {0x20000, 0x3fffd},
}

// runeWidth is how many cells of a terminal a printable rune takes.
func runeWidth(r rune) int {
	if r < wide[0][0] && !unicode.In(r, unicode.Mn, unicode.Me) {
		return 1
	}
	if unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf) {
		return 0
	}
	for _, w := range wide {
		if r >= w[0] && r <= w[1] {
			return 2
		}
	}
	return 1
}

// Width is how many cells a printable string takes.
func Width(s string) (n int) {
	for _, r := range s {
		n += runeWidth(r)
	}
	return n
}

// Cut shortens a printable string to at most width cells; what was cut shows
// as an ellipsis.
func Cut(s string, width int) string {
	if Width(s) <= width {
		return s
	}
	if width < 1 {
		return ""
	}
	n, end := 0, 0
	for i, r := range s {
		if n += runeWidth(r); n > width-1 {
			break
		}
		end = i + utf8.RuneLen(r)
	}
	return s[:end] + "…"
}

// pad fills s up to width cells, on the left for numbers.
func pad(s string, width int, right bool) string {
	blanks := strings.Repeat(" ", max(0, width-Width(s)))
	if right {
		return blanks + s
	}
	return s + blanks
}
