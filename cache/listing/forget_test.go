package listing

import (
	"testing"
	"testing/synctest"
	"time"

	files "stoker.dev/ufs/folder"
)

// Batches of journals go when nobody goes on with them any more, and what is none.
func TestForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := files.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		put := func(name string) {
			if _, err := store.PutIfAbsent(t.Context(), name, nil); err != nil {
				t.Fatal(err)
			}
		}
		j := NewJournal(store, "it", JournalOptions{})
		put(j.name(time.Now(), 0))
		put(listings + "stray")
		time.Sleep(forgotten)
		kept := j.name(time.Now(), 0)
		put(kept)
		time.Sleep(time.Second)
		if err := Forget(t.Context(), store); err != nil {
			t.Fatal(err)
		}
		if names, err := store.List(t.Context(), ""); err != nil || len(names) != 1 || names[0] != kept {
			t.Errorf("left: %v, %v", names, err)
		}
	})
}
