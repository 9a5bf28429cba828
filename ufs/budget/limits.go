package budget

import (
	"fmt"
	"math"
	"path"
	"strconv"
	"strings"

	"stoker.dev"
)

// What a budget counts.
const (
	Bytes    = iota // that come from the under file system
	Requests        // of data, listings and look-ups
	kinds
)

// Amount is how much of each there is, or may be, in a second. In a Limits and
// what comes of it 0 bytes, or 0 requests, means that there is no limit.
type Amount [kinds]float64

// Rule gives endpoints a limit.
type Rule struct {
	Pattern   string // of names of endpoints, as path.Match has it; "" = all
	PerSecond float64
}

// Rules are the limits of one kind.
type Rules []Rule

// Limits are what may be asked of endpoints by the whole cluster.
type Limits struct{ Bytes, Requests Rules }

// Of is the limit of an endpoint: that of the first rule whose pattern matches,
// else that of a rule without one; 0 = none.
func (r Rules) Of(endpoint string) float64 {
	var all float64
	for _, rule := range r {
		if rule.Pattern == "" {
			all = rule.PerSecond
		} else if ok, _ := path.Match(rule.Pattern, endpoint); ok {
			return rule.PerSecond
		}
	}
	return all
}

// Of are the limits of an endpoint.
func (l Limits) Of(endpoint string) Amount {
	return Amount{l.Bytes.Of(endpoint), l.Requests.Of(endpoint)}
}

const (
	// LeastBytes and LeastRequests are the smallest limits: a block must pass
	// within seconds, and a cluster has some workers.
	LeastBytes, LeastRequests = 1 << 20, 10
)

// Parse reads RATE or PATTERN=RATE, several with commas between them. A rate is
// 10GB/s, or a number, of what kind says.
func Parse(text string, kind int) (Rules, error) {
	var out Rules
	for one := range strings.SplitSeq(text, ",") {
		var r Rule
		rate := one
		if at := strings.LastIndex(one, "="); at >= 0 {
			r.Pattern, rate = one[:at], one[at+1:]
			if _, err := path.Match(r.Pattern, "x"); err != nil || r.Pattern == "" {
				return nil, stoker.Errorf(stoker.KindInvalid, "usage", one, "%q is no pattern of an endpoint: write s3.example:9000=1GB/s or *.example=1GB/s", r.Pattern)
			}
		}
		var err error
		if r.PerSecond, err = parseRate(rate, kind); err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

var units = map[string]float64{"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
	"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}

func parseRate(text string, kind int) (float64, error) {
	example, least := "10GB/s, 500MB/s or 1048576", float64(LeastBytes)
	if kind == Requests {
		example, least = "5000/s or 5000", LeastRequests
	}
	s := strings.TrimSuffix(strings.TrimSpace(text), "/s")
	number := strings.TrimRightFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	unit := strings.TrimSpace(s[len(number):])
	f, err := strconv.ParseFloat(number, 64)
	factor, known := units[strings.ToUpper(unit)]
	if err != nil || !known || kind == Requests && unit != "" || math.IsNaN(f) || f < 0 || f*factor > 1e18 {
		return 0, stoker.Errorf(stoker.KindInvalid, "usage", text, "is no rate: write %s", example)
	}
	if f *= factor; f < least {
		return 0, stoker.Errorf(stoker.KindInvalid, "usage", text, "is less than %.0f in a second, with which a cluster cannot work: write %s", least, example)
	}
	return f, nil
}

// String writes rules as Parse reads them.
func (r Rules) String() string {
	parts := make([]string, len(r))
	for i, rule := range r {
		parts[i] = fmt.Sprintf("%.0f", rule.PerSecond)
		if rule.Pattern != "" {
			parts[i] = rule.Pattern + "=" + parts[i]
		}
	}
	return strings.Join(parts, ",")
}
