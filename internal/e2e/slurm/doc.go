// Package slurm holds no code: its tests run real Slurm daemons, a private munge
// and the files of deploy/slurm over an embedded cluster of stoker, as a site
// would. They need `make build`, root, /dev/fuse and what scripts/need installs.
package slurm
