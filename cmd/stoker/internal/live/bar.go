package live

import "strings"

// Glyphs are what bars are made of.
type Glyphs struct {
	parts       []rune // a cell that is full to 1/n, 2/n, … n/n
	taken, free rune
}

// Blocks draws with block elements where the terminal's encoding has them,
// else with ASCII.
func Blocks(unicode bool) Glyphs {
	if unicode {
		return Glyphs{[]rune("▏▎▍▌▋▊▉█"), '▒', '░'}
	}
	return Glyphs{[]rune{'#'}, '+', '.'}
}

// Bar draws used, and behind it reserved, out of whole. Only the whole of it
// fills the bar, and anything of it shows.
func (g Glyphs) Bar(used, reserved, whole int64, cells int) Cell {
	n := len(g.parts)
	fine := 0 // in parts of a cell
	if whole > 0 {
		fine = int(min(1, max(0, float64(used)/float64(whole))) * float64(cells*n))
	}
	if fine == 0 && used > 0 && whole > 0 {
		fine = 1
	}
	full := strings.Repeat(string(g.parts[n-1]), fine/n)
	if fine%n > 0 {
		full += string(g.parts[fine%n-1])
	}
	left := cells - Width(full)
	held := 0
	if whole > 0 {
		held = min(left, int(max(0, float64(reserved))/float64(whole)*float64(cells)+0.5))
	}
	text := full + strings.Repeat(string(g.taken), held) + strings.Repeat(string(g.free), left-held)
	return Cell{Text: text, Paint: g.paint}
}

func (g Glyphs) paint(s string) string {
	var full, taken, free string
	for _, r := range s {
		switch r {
		case g.taken:
			taken += string(r)
		case g.free, '…':
			free += string(r)
		default:
			full += string(r)
		}
	}
	out := ""
	if full != "" {
		out += Green(full)
	}
	if taken != "" {
		out += Yellow(taken)
	}
	if free != "" {
		out += Dim(free)
	}
	return out
}
