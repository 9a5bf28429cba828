package main

import (
	"errors"

	"stoker.dev"
	"stoker.dev/ufs/budget"
)

// rates is a flag that limits what is asked of under file systems.
type rates struct {
	kind  int
	rules budget.Rules
}

// Set implements pflag.Value. Given again, it adds.
func (r *rates) Set(s string) error {
	more, err := budget.Parse(s, r.kind)
	var e *stoker.Error
	if errors.As(err, &e) {
		return e.Err // the flag's name stands before it
	}
	r.rules = append(r.rules, more...)
	return err
}

// String implements pflag.Value.
func (r *rates) String() string { return r.rules.String() }

// Type implements pflag.Value.
func (r *rates) Type() string { return "rates" }

// limits are those of both flags.
func (f *sharedFlags) limits() budget.Limits {
	return budget.Limits{Bytes: f.bandwidth.rules, Requests: f.requests.rules}
}
