package store

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"stoker.dev"
)

// childDir names the folder that a process of this test binary works on as the
// victim of TestKill9.
const childDir = "STOKER_TEST_STORE_CHILD"

// child writes shards until it is killed, and prints each step when the call
// that makes it last has returned; what takes something away it prints before.
func child(dir string) {
	must := func(err error) {
		if err != nil {
			fmt.Println("failed", err)
			os.Exit(1)
		}
	}
	s, err := Open(Options{Dir: dir, CapacityBytes: roomy})
	must(err)
	for k := uint64(0); ; k++ {
		name := fmt.Sprint("load", k%3)
		bytes := int64(1000 + k)
		fmt.Println("reserving", name, bytes)
		must(s.Reserve(name, bytes))
		fmt.Println("reserved", name, bytes)
		spec := specOf(k, 1+int(k*7%40))
		sh, err := s.Create(spec, "")
		must(err)
		for _, b := range rand.Perm(spec.Blocks) {
			off, p := content(spec, b)
			_, err := sh.Write(b, off, p)
			must(err)
			fmt.Println("wrote", k, b)
		}
		if k%3 == 0 {
			must(sh.Seal())
			fmt.Println("sealed", k)
		}
		sh.Release()
		if k%4 == 3 {
			fmt.Println("removing", k-3)
			must(s.Remove(specOf(k-3, 1).ID))
		}
		must(s.PutState("last", fmt.Append(nil, k)))
		fmt.Println("state", k)
	}
}

// told is what a victim has said to be done.
type told struct {
	wrote    map[uint64][]int
	sealed   map[uint64]bool
	reserved map[string][2]int64 // done, and under way
	state    int
}

func (v *told) hear(t *testing.T, line string) {
	t.Helper()
	f := strings.Fields(line)
	num := func(i int) int {
		n, err := strconv.Atoi(f[i])
		if err != nil {
			t.Fatalf("the victim said %q", line)
		}
		return n
	}
	switch f[0] {
	case "wrote":
		v.wrote[uint64(num(1))] = append(v.wrote[uint64(num(1))], num(2))
	case "sealed":
		v.sealed[uint64(num(1))] = true
	case "removing":
		delete(v.wrote, uint64(num(1)))
		delete(v.sealed, uint64(num(1)))
	case "reserving":
		v.reserved[f[1]] = [2]int64{v.reserved[f[1]][0], int64(num(2))}
	case "reserved":
		v.reserved[f[1]] = [2]int64{int64(num(2)), int64(num(2))}
	case "state":
		v.state = num(1)
	default:
		t.Fatalf("the victim said %q", line)
	}
}

// victim runs a child on dir, kills it once it has said so many lines, and
// returns all that it had said by then.
func victim(t *testing.T, dir string, lines int) *told {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v := &told{wrote: map[uint64][]int{}, sealed: map[uint64]bool{}, reserved: map[string][2]int64{}, state: -1}
	sc := bufio.NewScanner(out)
	for n := 0; sc.Scan(); n++ {
		if v.hear(t, sc.Text()); n == lines {
			if err := cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != -1 {
		t.Fatalf("the victim ended by itself: %v", err)
	}
	return v
}

// kill -9 at any moment loses nothing that had been said to be there, and
// leaves nothing that is wrong.
func TestKill9(t *testing.T) {
	r := rand.New(rand.NewPCG(rand.Uint64(), 0))
	for range 10 {
		lines := r.IntN(1500)
		t.Run(fmt.Sprint(lines, " lines"), func(t *testing.T) {
			dir := t.TempDir()
			v := victim(t, dir, lines)
			s := open(t, dir, roomy)
			v.compare(t, s)
		})
	}
}

func (v *told) compare(t *testing.T, s *Store) {
	t.Helper()
	for k, blocks := range v.wrote {
		sh, ok := s.Get(specOf(k, 1).ID)
		if !ok {
			t.Errorf("shard %d is gone, %d blocks were written", k, len(blocks))
			continue
		}
		for _, b := range blocks {
			if err := read(t, sh, b); err != nil {
				t.Errorf("shard %d block %d was written: %v", k, b, err)
			}
		}
		if v.sealed[k] && !sh.Sealed() {
			t.Errorf("shard %d was sealed", k)
		}
		sh.Release()
	}
	for _, st := range s.Shards() {
		sh := get(t, s, st.ID)
		for b := range st.Blocks {
			if err := read(t, sh, b); err != nil && stoker.KindOf(err) != stoker.KindNotExist {
				t.Errorf("a block that is claimed: %v", err)
			}
		}
		sh.Release()
	}
	for name, want := range v.reserved {
		if got := s.Reservations()[name]; got != want[0] && got != want[1] {
			t.Errorf("reservation %s has %d bytes, want %d or %d", name, got, want[0], want[1])
		}
	}
	body, err := s.GetState("last")
	if n, _ := strconv.Atoi(string(body)); v.state >= 0 && (err != nil || n != v.state && n != v.state+1) {
		t.Errorf("the document says %q %v, %d was put", body, err, v.state)
	}
}
