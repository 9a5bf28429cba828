// Package arch holds no code: its tests are the project's structure, checked.
// They list the packages with `go list` and hold them against two maps: who
// may import whom, and where each heavy dependency has its one home.
package arch
