package posixufs

import "testing"

func TestMountOf(t *testing.T) {
	const info = `21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
32 21 0:30 / /lustre rw - lustre server:/fs rw
33 32 0:31 / /lustre/home rw - nfs4 nas:/home rw
34 21 0:32 / /with\040space rw - nfs4 nas:/x rw
short
`
	for folder, want := range map[string]string{
		"/data/set": "/", "/lustre/set": "/lustre", "/lustre": "/lustre", "/lustre2/set": "/", "/lustre/home/a": "/lustre/home", "/with space/x": "/with space",
	} {
		if got := mountOf(folder, info); got != want {
			t.Errorf("%s lies in %s, want %s", folder, got, want)
		}
	}
}
