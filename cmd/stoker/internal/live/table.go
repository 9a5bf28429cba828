package live

import (
	"fmt"
	"strings"
)

// Column is one column of a Table.
type Column struct {
	Head  string
	Right bool // numbers stand on the right
	Min   int  // where it must, the column shrinks to so many cells; 0 = never
	Room  int  // it is at least so wide, so that nothing moves when numbers grow
}

// Cell is the text of one cell and how it is painted, once it has its width.
type Cell struct {
	Text  string
	Paint func(string) string // nil = not at all; used where there is colour
}

// Table lines cells up and keeps within a width. The zero value with Columns
// is ready.
type Table struct {
	Columns []Column
	Empty   string // what an empty cell shows
	rows    [][]Cell
}

const gap = 2 // cells between columns

// Row adds a row. What is no Cell is printed; cells beyond the columns are not
// shown.
func (t *Table) Row(cells ...any) {
	row := make([]Cell, len(t.Columns))
	for i := range row {
		switch c := cells[i].(type) {
		case Cell:
			row[i] = c
		default:
			row[i] = Cell{Text: fmt.Sprint(c)}
		}
		if row[i].Text = Printable(row[i].Text); row[i].Text == "" {
			row[i].Text = t.Empty
		}
	}
	t.rows = append(t.rows, row)
}

// Lines draws the table in at most width cells, 0 = as wide as it is. The
// first line is the head.
func (t *Table) Lines(width int, color bool) []string {
	head := make([]Cell, len(t.Columns))
	for i, c := range t.Columns {
		head[i] = Cell{Text: c.Head, Paint: Dim}
	}
	widths := t.widths(head, width)
	lines := []string{t.line(head, widths, width, color)}
	for _, row := range t.rows {
		lines = append(lines, t.line(row, widths, width, color))
	}
	return lines
}

// widths gives each column its widest cell, and takes from the widest that
// shrink until all fit.
func (t *Table) widths(head []Cell, width int) []int {
	widths := make([]int, len(t.Columns))
	sum := gap * (len(widths) - 1)
	for i := range widths {
		widths[i] = max(Width(head[i].Text), t.Columns[i].Room)
		for _, row := range t.rows {
			widths[i] = max(widths[i], Width(row[i].Text))
		}
		sum += widths[i]
	}
	for ; width > 0 && sum > width; sum-- {
		widest := -1
		for i, c := range t.Columns {
			if c.Min > 0 && widths[i] > c.Min && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			break // the lines are cut as a whole
		}
		widths[widest]--
	}
	return widths
}

func (t *Table) line(row []Cell, widths []int, width int, color bool) string {
	var b strings.Builder
	used, blanks := 0, 0
	for i, c := range row {
		room := widths[i]
		if width > 0 {
			room = min(room, width-used-blanks)
		}
		if room <= 0 {
			break
		}
		text := pad(Cut(c.Text, room), room, t.Columns[i].Right)
		bare := strings.TrimRight(text, " ")
		tail := len(text) - len(bare)
		if bare != "" {
			b.WriteString(strings.Repeat(" ", blanks))
			used, blanks = used+blanks+room-tail, 0
			if color && c.Paint != nil {
				bare = c.Paint(bare)
			}
			b.WriteString(bare)
		}
		blanks += tail + gap
	}
	return b.String()
}

// paint makes a painter of an ANSI code.
func paint(code string) func(string) string {
	return func(s string) string { return "\x1b[" + code + "m" + s + "\x1b[0m" }
}

// Painters.
func Dim(s string) string    { return paint("2")(s) }
func Green(s string) string  { return paint("32")(s) }
func Yellow(s string) string { return paint("33")(s) }
func Red(s string) string    { return paint("31")(s) }
func Cyan(s string) string   { return paint("36")(s) }
func Bold(s string) string   { return paint("1")(s) }
