// Package e2e holds no code: its tests run the built binaries as a user does,
// an embedded cluster of real processes, and count at the S3 side what was
// fetched. They need `make build`, root and /dev/fuse.
package e2e
