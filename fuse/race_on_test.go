//go:build race

package fuse

const raceDetector = true
