package api

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"stoker.dev"
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

// LeastRate is the smallest limit in bytes a second: a block must pass within seconds.
const LeastRate = 1 << 20

var byteUnits = map[string]float64{"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
	"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}

// ParseRate reads bytes a second, as in 100MiB/s or 1048576; none is 0.
func ParseRate(text string) (int64, error) {
	s := strings.TrimSuffix(strings.TrimSpace(text), "/s")
	if s == "none" {
		return 0, nil
	}
	f, ok := bytesOf(s)
	if !ok || !(f >= LeastRate && f <= 1e18) {
		return 0, stoker.Errorf(stoker.KindInvalid, "usage", text, "is no rate of at least 1MiB/s: write 100MiB/s, 1GB/s or none")
	}
	return int64(f), nil
}

// ParseBytes reads a number of bytes, most at most, as in 128KiB or 0.
func ParseBytes(text string, most int64) (int64, error) {
	f, ok := bytesOf(strings.TrimSpace(text))
	if !ok || !(f >= 0 && f <= float64(most)) {
		return 0, stoker.Errorf(stoker.KindInvalid, "usage", text, "is no size from 0 to %s: write 128KiB or 0", HumanBytes(most))
	}
	return int64(f), nil
}

func bytesOf(s string) (float64, bool) {
	number := strings.TrimRightFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	factor, known := byteUnits[strings.ToUpper(strings.TrimSpace(s[len(number):]))]
	f, err := strconv.ParseFloat(number, 64)
	return f * factor, err == nil && known
}
