package api

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// HumanBytes prints a number of bytes for people: "3.1 GiB".
func HumanBytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 && n > -1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for (f >= 1023.95 || f <= -1023.95) && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}

// EscapePath makes a path fit for JSON: bytes that are not UTF-8 become %XX,
// and so does a % that could be taken for one of them.
func EscapePath(p string) string {
	if utf8.ValidString(p) && !strings.Contains(p, "%") {
		return p
	}
	var b strings.Builder
	for i := 0; i < len(p); {
		r, n := utf8.DecodeRuneInString(p[i:])
		switch {
		case r == utf8.RuneError && n == 1, p[i] == '%':
			fmt.Fprintf(&b, "%%%02X", p[i])
			n = 1
		default:
			b.WriteString(p[i : i+n])
		}
		i += n
	}
	return b.String()
}
