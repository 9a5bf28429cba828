package memufs

import (
	"testing"

	"stoker.dev/ufs/ufstest"
)

func TestConformance(t *testing.T) {
	ufstest.Run(t, func(*testing.T) ufstest.Env {
		f := New()
		return ufstest.Env{FS: f, Put: f.Put, Delete: f.Delete}
	})
}
