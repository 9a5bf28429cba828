package listing

import "stoker.dev/ufs"

// span is a range of one source's keys that one worker lists: those after
// `after`, up to and including `until`. No two spans hold the same key. All
// but first, last and token is guarded by the lister's lock.
type span struct {
	source int
	after  string // the last key that was handed on; at first, the lower bound
	until  string // "" = to the end of the source

	logged string // like after, as the journal knows it
	ended  bool   // the journal knows all of it
	token  string // of the next page; "" = ask by start-after

	// What the last whole page says of the keys that follow.
	paged    bool // a whole page has come, and more follows
	scale    int  // bytes that the keys of half a page have in common
	step     int  // how far half a page gets at the byte behind those
	misses   int  // splits that found nothing in the upper part, since one that did
	pending  int  // splits whose first page is under way
	parent   *span
	answered bool // its first page has come
	held     bool // it is not to be split by a guess
}

// learn looks at a whole page of the keys of s.
func (s *span) learn(first, middle, last string) {
	// A page may run over a border such as 39…, 40…: one of its halves does not.
	s.paged, s.scale = true, common(first, middle)
	s.step = byteAt(middle, s.scale) - byteAt(first, s.scale)
	if c := common(middle, last); c > s.scale {
		s.scale, s.step = c, byteAt(last, c)-byteAt(middle, c)
	}
	s.step = max(s.step, 1)
}

// minPages is what a span has to hold, by the guess, to be worth a split: each
// split costs a part of a page, which is listed twice.
const minPages = 3

// The bytes that a guessed border may end in: a border goes over the wire in
// URLs, to stores of which some take no keys that are not UTF-8.
const (
	lowest  = 0x20
	highest = 0x7e
)

// left guesses how many pages of s are left, 0 if nothing can be said.
func (s *span) left(prefix int) float64 {
	if !s.paged {
		return 0
	}
	at, top := s.level(prefix)
	if at < 0 || at > s.scale {
		return 0
	}
	pages := float64(min(top, classEnd(s.after[at]))-int(s.after[at])) / float64(2*s.step)
	for range min(s.scale-at, 20) {
		pages *= 8 // of the bytes of names, about so many differ at one place
	}
	return pages
}

// level returns the first place where a key of s may differ from s.after, and
// the byte that none is above there; -1 if there is none that can be used.
func (s *span) level(prefix int) (at, top int) {
	at, top = prefix, highest
	if s.until != "" {
		at = common(s.after, s.until)
		if at < len(s.until) {
			top = min(int(s.until[at]), highest)
		}
		if at < len(s.after) && top == int(s.after[at])+1 && len(s.until) == at+1 {
			at, top = at+1, highest // all that is left begins with s.after[:at+1]
		}
	}
	for ; at < len(s.after); at, top = at+1, highest {
		if c := int(s.after[at]); c >= lowest && c < top {
			return at, top
		}
	}
	return -1, 0
}

// middle guesses a key that halves what is left of s: after s.after and before
// s.until. The first guess halves the names that may follow; where nothing was
// found in the upper part, the next halves the number of places that may
// differ, so that the end of 00000000, 00000001, … is found in a few steps.
func (s *span) middle(prefix int) (string, bool) {
	at, top := s.level(prefix)
	if at < 0 || at > s.scale {
		return "", false
	}
	if s.misses+s.pending > 0 {
		for i := min((at+s.scale)/2, s.scale-2, len(s.after)-1); i > at; i-- {
			if c := s.after[i]; c >= lowest && c < highest {
				return s.within(s.after[:i] + string(rune(c+1)))
			}
		}
	}
	c := int(s.after[at])
	to := min(top, classEnd(s.after[at]))
	return s.within(s.after[:at] + string(rune(max(c+1, c+(to-c+1)/2))))
}

func (s *span) within(border string) (string, bool) {
	return border, border > s.after && (s.until == "" || border < s.until)
}

// split takes the upper part of s away, from border on.
func (s *span) split(border string) *span {
	t := &span{source: s.source, after: border, logged: border, until: s.until, parent: s}
	s.until = border
	s.pending++
	return t
}

// classEnd returns the byte after the class of c: digits, capitals, small
// letters, or what lies between these.
func classEnd(c byte) int {
	for _, end := range []byte{'0', '9' + 1, 'A', 'Z' + 1, 'a', 'z' + 1} {
		if c < end {
			return int(end)
		}
	}
	return highest
}

// common returns the length of the prefix that a and b have in common.
func common(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

func byteAt(s string, i int) int {
	if i < len(s) {
		return int(s[i])
	}
	return 0
}

// cut drops the objects of a page that lie above until. It reports whether
// the span ends with the page.
func cut(page []ufs.Object, until string) ([]ufs.Object, bool) {
	n := len(page)
	for until != "" && n > 0 && page[n-1].Key > until {
		n--
	}
	return page[:n], n < len(page) || until != "" && n > 0 && page[n-1].Key == until
}
