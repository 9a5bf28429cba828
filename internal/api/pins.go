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

// What can be done with a running load.
const (
	SteerPause  = "pause"
	SteerResume = "resume"
	SteerStop   = "stop"
)

// SteerRequest is the body of POST /v1/datasets/{name}/load.
type SteerRequest struct {
	Action string `json:"action"` // pause | resume | stop
}

// SteerReport is its answer.
type SteerReport struct {
	Dataset string   `json:"dataset"`
	State   string   `json:"state"` // paused | resumed | stopped
	Jobs    []string `json:"jobs"`  // that wait for the load; stopped: that were
}
