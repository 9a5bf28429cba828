package api

import (
	"fmt"
	"time"
)

// PinHolder says for people who holds data, why, and until when.
func PinHolder(owner, reason string, until time.Time) string {
	return fmt.Sprintf("the pin of %s (%s) until %s", owner, reason, until.UTC().Format(time.RFC3339))
}

// String is PinHolder of the pin.
func (p Pin) String() string { return PinHolder(p.Owner, p.Reason, p.Until) }
