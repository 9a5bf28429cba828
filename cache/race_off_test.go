//go:build !race

package cache

// raceDetector multiplies the memory of the process and makes pools forget.
const raceDetector = false
