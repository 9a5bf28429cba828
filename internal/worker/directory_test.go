package worker

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"stoker.dev"
	"stoker.dev/cache/peer"
	"stoker.dev/cache/placement"
	"stoker.dev/planner"
)

// counted is an index that counts how often it is asked who holds what.
type counted struct {
	placement.Index
	asked int
	err   error
	hold  chan struct{} // not nil: it answers when that is closed
	late  chan struct{} // not nil: with what was so when it was asked
}

func (c *counted) Holders(ctx context.Context, id stoker.ID, shards []uint32) ([][]placement.Holder, error) {
	if c.asked++; c.err != nil {
		return nil, c.err
	}
	hold, late := c.hold, c.late
	if hold != nil {
		<-hold
	}
	holders, err := c.Index.Holders(ctx, id, shards)
	if late != nil {
		<-late
	}
	return holders, err
}

// besideAnother makes the directory of a worker that another one is beside, for an hour.
func besideAnother(t *testing.T, index placement.Index) (d *directory, other placement.Worker) {
	t.Helper()
	me, other := placement.Worker{ID: "me", Incarnation: stoker.NewIncarnation()}, placement.Worker{ID: "other", Incarnation: stoker.NewIncarnation()}
	for _, w := range []placement.Worker{me, other} {
		if err := index.Register(t.Context(), w, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	d = newDirectory(index, func() placement.Worker { return me }, slog.New(slog.DiscardHandler))
	d.refresh(t.Context())
	return d, other
}

// Misses that follow each other ask the index once in a moment, as long as nobody
// else holds anything of the shard, or of those beside it; who comes by then is found in the
// next.
func TestThatNobodyHoldsIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		index := &counted{Index: placement.NewMem(time.Now)}
		d, other := besideAnother(t, index)
		id := stoker.ID{1}
		of := func(n uint32, when string, holders, asked int) {
			t.Helper()
			if peers := d.Holders(ctx, id, n); len(peers) != holders || index.asked != asked {
				t.Errorf("%s: %d holders after asking %d times, want %d after %d", when, len(peers), index.asked, holders, asked)
			}
		}
		ask := func(when string, holders, asked int) { t.Helper(); of(7, when, holders, asked) }
		announce := func(whole bool) {
			if err := index.Announce(ctx, other.Incarnation, id, []placement.Mark{{Shard: 7, Whole: whole}}); err != nil {
				t.Fatal(err)
			}
		}
		ask("at first", 0, 1)
		announce(false)
		ask("at once", 0, 1)
		time.Sleep(nobodyAge)
		ask("a moment later", 1, 2)
		ask("of a part, which grows", 1, 3)
		announce(true)
		ask("of the whole", 1, 4)
		time.Sleep(nobodyAge)
		ask("of the whole, again", 1, 4)
		time.Sleep(wholeAge)
		index.err = stoker.Errorf(stoker.KindTransient, "index", "", "away")
		ask("away", 0, 5)
		index.err = nil
		time.Sleep(silentFor)
		ask("back", 1, 6)
		for n := range uint32(placement.GroupShards) {
			if n != 7 {
				of(n, "beside it", 0, 6)
			}
		}
		of(placement.GroupShards, "of the next group", 0, 7)
		of(2*placement.GroupShards-1, "of its last one", 0, 7)
		time.Sleep(nobodyAge)
		of(8, "beside it, a moment later", 0, 8)
		ask("of the whole, meanwhile", 1, 8)
		time.Sleep(nobodyAge)
		index.hold = make(chan struct{})
		go d.Holders(ctx, id, 8)
		synctest.Wait()
		heard, cancelled := make(chan int, 1), make(chan int, 1)
		go func() { heard <- len(d.Holders(ctx, id, 9)) }()
		leaving, leave := context.WithCancel(ctx)
		go func() { cancelled <- len(d.Holders(leaving, id, 10)) }()
		synctest.Wait()
		if len(heard)+len(cancelled) > 0 || index.asked != 9 {
			t.Errorf("who came while another one asked did not wait for it, or asked, too (%d times in all)", index.asked)
		}
		leave()
		if n := <-cancelled; n != 0 {
			t.Errorf("who left heard of %d holders", n)
		}
		if err := index.Announce(ctx, other.Incarnation, id, []placement.Mark{{Shard: 9, Whole: true}}); err != nil {
			t.Fatal(err)
		}
		close(index.hold)
		if n := <-heard; n != 1 {
			t.Errorf("%d holders of what was announced since the last answer, want 1", n)
		}
		of(11, "after it", 0, 10)
	})
}

// An answer is as old as its question, however late it comes: it is not believed for longer,
// nor instead of one to a later question. Who waited for it believes it.
func TestLateAnswersAreOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, id := t.Context(), stoker.ID{1}
		index := &counted{Index: placement.NewMem(time.Now)}
		d, other := besideAnother(t, index)
		announce := func(n uint32) {
			if err := index.Announce(ctx, other.Incarnation, id, []placement.Mark{{Shard: n, Whole: true}}); err != nil {
				t.Fatal(err)
			}
		}
		ask := func(n uint32) chan int {
			heard := make(chan int, 1)
			go func() { heard <- len(d.Holders(ctx, id, n)) }()
			synctest.Wait()
			return heard
		}
		want := func(when string, heard chan int, holders, asked int) {
			t.Helper()
			if n := <-heard; n != holders || index.asked != asked {
				t.Errorf("%s: %d holders after asking %d times, want %d after %d", when, n, index.asked, holders, asked)
			}
		}
		answer := func() { close(index.late); synctest.Wait() }

		index.late = make(chan struct{})
		first := ask(0)
		announce(0)
		<-time.After(nobodyAge)
		answer()
		index.late = nil
		want("who asked before", first, 0, 1)
		want("that nobody had it a moment ago", ask(0), 1, 2)

		index.late = make(chan struct{})
		first = ask(placement.GroupShards)
		<-time.After(nobodyAge / 2)
		announce(placement.GroupShards)
		late := index.late
		index.late = nil
		want("of another one of its group", ask(placement.GroupShards+1), 0, 4)
		close(late)
		want("who asked before that", first, 0, 4)
		want("that nobody had it before", ask(placement.GroupShards), 1, 5)

		want("of the third group", ask(2*placement.GroupShards), 0, 6)
		<-time.After(nobodyAge)
		index.late = make(chan struct{})
		first = ask(2 * placement.GroupShards)
		<-time.After(nobodyAge / 2)
		second := ask(2*placement.GroupShards + 1)
		<-time.After(nobodyAge)
		answer()
		want("who asked", first, 0, 7)
		want("who waited for it", second, 0, 7)
	})
}

// deaf is an index that hears nothing of what is where while it is away.
type deaf struct {
	placement.Index
	away      atomic.Bool
	meanwhile func() // is called while an announcement is on its way in vain
}

func (d *deaf) heard() error {
	if d.away.Load() {
		return stoker.Errorf(stoker.KindTransient, "index", "", "away")
	}
	return nil
}

func (d *deaf) Announce(ctx context.Context, n stoker.Incarnation, id stoker.ID, marks []placement.Mark) error {
	if err := d.heard(); err != nil {
		d.meanwhile()
		return err
	}
	return d.Index.Announce(ctx, n, id, marks)
}

func (d *deaf) Withdraw(ctx context.Context, n stoker.Incarnation, id stoker.ID, shards []uint32) error {
	if err := d.heard(); err != nil {
		return err
	}
	return d.Index.Withdraw(ctx, n, id, shards)
}

// known says of each of some shards what the index has of the worker: w the whole, p a
// part, - nothing.
func (d *deaf) known(t *testing.T, id stoker.ID, shards ...uint32) (out string) {
	t.Helper()
	all, err := d.Holders(t.Context(), id, shards)
	if err != nil {
		t.Fatal(err)
	}
	for _, of := range all {
		switch {
		case len(of) == 0:
			out += "-"
		case of[0].Whole:
			out += "w"
		default:
			out += "p"
		}
	}
	return out
}

// What an index did not hear of while it was away it hears of later, though it knows the
// worker still; of a shard of which something newer was said it hears that.
func TestWhatIsNotHeardIsSaidAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		index := &deaf{Index: placement.NewMem(time.Now)}
		me, id, other := placement.Worker{ID: "me", Incarnation: stoker.NewIncarnation()}, stoker.ID{1}, stoker.ID{2}
		d := newDirectory(index, func() placement.Worker { return me }, slog.New(slog.DiscardHandler))
		d.held = func(context.Context, func(stoker.ID, uint32, bool)) error { return nil }
		index.meanwhile = sync.OnceFunc(func() {
			d.Withdraw(id, []uint32{3})
			d.Announce(id, 1, false)
			d.Withdraw(id, []uint32{4})
			d.Announce(id, 4, false)
		})
		ended := make(chan struct{})
		go func() { defer close(ended); d.run(ctx, func() {}) }()
		synctest.Wait()
		want := func(when, of, ofOther string) {
			t.Helper()
			if got, gotOther := index.known(t, id, 0, 1, 2, 3, 4), index.known(t, other, 0); got != of || gotOther != ofOther {
				t.Errorf("%s: %s and %s are known, want %s and %s", when, got, gotOther, of, ofOther)
			}
		}
		for n := range uint32(2) {
			d.Announce(id, n, true)
		}
		d.Flush(ctx)
		want("at first", "ww---", "-")

		index.away.Store(true)
		d.Withdraw(id, []uint32{0, 1})
		for n := range uint32(3) {
			d.Announce(id, 2+n, true)
		}
		d.Announce(other, 0, true)
		<-time.After(2 * silentFor)
		want("away", "ww---", "-")
		index.away.Store(false)
		<-time.After(silentFor + announceEvery)
		want("back", "-pw-p", "w")
		stop()
		<-ended
	})
}

// An index that stays away does not make a worker remember ever more that it has not.
func TestWithdrawalsThatAreKeptAreBounded(t *testing.T) {
	me := placement.Worker{ID: "me", Incarnation: stoker.NewIncarnation()}
	index := &deaf{Index: placement.NewMem(time.Now)}
	index.away.Store(true)
	d := newDirectory(index, func() placement.Worker { return me }, slog.New(slog.DiscardHandler))
	for i := range uint32(3) {
		shards := make([]uint32, goneKept/2)
		for n := range shards {
			shards[n] = i*goneKept + uint32(n)
		}
		d.Withdraw(stoker.ID{byte(i)}, shards)
		d.Flush(t.Context())
	}
	kept := 0
	for _, shards := range d.gone {
		kept += len(shards)
	}
	if kept != goneKept {
		t.Errorf("%d are kept, want %d", kept, goneKept)
	}
}

// slow is an index that takes its time to say who holds what.
type slow struct {
	placement.Index
	takes time.Duration
}

func (s *slow) Holders(ctx context.Context, id stoker.ID, shards []uint32) ([][]placement.Holder, error) {
	select {
	case <-time.After(s.takes):
		return s.Index.Holders(ctx, id, shards)
	case <-ctx.Done():
		return nil, stoker.Errorf(stoker.KindTransient, "index", "", "too late")
	}
}

// A load waits for an index that is slow, but not for one that has long been silent; a read
// waits for neither, nor for a load that does.
func TestLoadsWaitForASlowIndex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		index := &slow{placement.NewMem(time.Now), 2 * time.Second}
		d, other := besideAnother(t, index)
		id := stoker.ID{1}
		if err := index.Announce(t.Context(), other.Incarnation, id, []placement.Mark{{Shard: 7, Whole: true}}); err != nil {
			t.Fatal(err)
		}
		ask := func(who string, ctx context.Context, holders int, least, most time.Duration) {
			t.Helper()
			began := time.Now()
			if n, took := len(d.Holders(ctx, id, 7)), time.Since(began); n != holders || took < least || took > most {
				t.Errorf("%s: %d holders after %v, want %d after %v to %v", who, n, took, holders, least, most)
			}
		}
		load := peer.Ordered(t.Context())
		ask("a read", t.Context(), 0, askTimeout, askTimeout)
		ask("the next one", t.Context(), 0, 0, 0)
		go ask("a load", load, 1, index.takes, index.takes)
		synctest.Wait()
		ask("a read beside it", t.Context(), 0, 0, askTimeout)
		time.Sleep(index.takes)
		index.takes = time.Hour
		time.Sleep(wholeAge)
		ask("a load, of a dead one", load, 0, loadTimeout, loadTimeout)
		time.Sleep(insistFor)
		ask("a load, of one that has long been dead", load, 0, askTimeout, askTimeout)
	})
}

// emptied is an index that is emptied now and then.
type emptied struct{ placement.Index }

// After the index was emptied the others are known as before until their
// leases have run out: a read finds the plan's owner, not another one.
func TestEmptiedIndexHidesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		index := &emptied{placement.NewMem(time.Now)}
		var all []placement.Worker
		for i := range 3 {
			all = append(all, placement.Worker{ID: fmt.Sprintf("w%d", i), Address: fmt.Sprintf("http://w%d", i), Incarnation: stoker.NewIncarnation()})
		}
		plan := &planner.Plan{Owners: [][]uint16{{1}}}
		for _, w := range all {
			plan.Workers = append(plan.Workers, planner.PlanWorker{ID: w.ID, Address: w.Address})
			if err := index.Register(ctx, w, leaseTTL); err != nil {
				t.Fatal(err)
			}
		}
		d := newDirectory(index, func() placement.Worker { return all[0] }, slog.New(slog.DiscardHandler))
		d.held = func(context.Context, func(stoker.ID, uint32, bool)) error { return nil }
		if !d.register(ctx) || len(d.live()) != 3 {
			t.Fatalf("live: %v", d.live())
		}
		owner := func(when string, want string) {
			t.Helper()
			if ask, self, _ := d.Owners(ctx, plan, stoker.ID{}, 0); self || len(ask) != 1 || ask[0].ID != want {
				t.Errorf("%s: the owner is %v (self: %v)", when, ask, self)
			}
		}
		empty := func() { index.Index = placement.NewMem(time.Now) }

		empty()
		d.refresh(ctx) // a read comes first
		owner("nobody is registered", "w1")
		d.mu.Lock()
		d.workers = all[:1] // as of a worker that came first, and had not heard of the others
		d.mu.Unlock()
		owner("nobody was heard of", "w1")
		d.mu.Lock()
		d.workers = slices.Clone(all)
		d.mu.Unlock()
		if d.renew(ctx) || !d.register(ctx) {
			t.Fatal("it is still known, or cannot register")
		}
		owner("only we are", "w1")

		empty()
		if d.renew(ctx) || !d.register(ctx) { // no read came between
			t.Fatal("it is still known, or cannot register")
		}
		owner("again only we are", "w1")
		all[1].Incarnation = stoker.NewIncarnation()
		if err := index.Register(ctx, all[1], leaseTTL); err != nil {
			t.Fatal(err)
		}
		d.refresh(ctx)
		if ask, _, _ := d.Owners(ctx, plan, stoker.ID{}, 0); len(ask) != 1 || ask[0].Incarnation != all[1].Incarnation {
			t.Error("an earlier life is remembered beside the present one")
		}
		if n := len(d.live()); n != 3 {
			t.Errorf("%d are live", n)
		}

		<-time.After(leaseTTL + time.Second)
		for _, w := range all[:2] {
			if _, err := index.Renew(ctx, w, leaseTTL); err != nil {
				t.Fatal(err)
			}
			if err := index.Register(ctx, w, leaseTTL); err != nil {
				t.Fatal(err)
			}
		}
		d.refresh(ctx)
		if n := len(d.live()); n != 2 {
			t.Errorf("%d are live after the third's lease has run out", n)
		}
	})
}

// Each owner of a plan asks those before it, and knows which of them are gone.
func TestOwnersInTurn(t *testing.T) {
	ctx := t.Context()
	index := placement.NewMem(time.Now)
	var all []placement.Worker
	plan := &planner.Plan{Owners: [][]uint16{{2, 1, 0, 3}}}
	for i := range 5 {
		w := placement.Worker{ID: fmt.Sprintf("w%d", i), Address: fmt.Sprintf("http://w%d", i), Incarnation: stoker.NewIncarnation()}
		all = append(all, w)
		plan.Workers = append(plan.Workers, planner.PlanWorker{ID: w.ID, Address: w.Address})
		if i != 1 { // it is gone
			if err := index.Register(ctx, w, leaseTTL); err != nil {
				t.Fatal(err)
			}
		}
	}
	for me, want := range map[int]string{0: "[w2] true [w1]", 2: "[] true []", 3: "[w2 w0] true [w1]", 4: "[w2 w0 w3] false []"} {
		d := newDirectory(index, func() placement.Worker { return all[me] }, slog.New(slog.DiscardHandler))
		d.refresh(ctx)
		ask, self, lost := d.Owners(ctx, plan, stoker.ID{}, 0)
		ids := []string{}
		for _, p := range ask {
			ids = append(ids, p.ID)
		}
		if got := fmt.Sprint(ids, self, lost); got != want {
			t.Errorf("worker %d: %s, want %s", me, got, want)
		}
	}
}

// Those who hold the same shards share the sending, and whole copies come first.
func TestHoldersTakeTurns(t *testing.T) {
	ctx := t.Context()
	index := placement.NewMem(time.Now)
	id := stoker.ID{1}
	var all []placement.Worker
	for i := range 5 {
		w := placement.Worker{ID: fmt.Sprintf("w%d", i), Incarnation: stoker.NewIncarnation()}
		all = append(all, w)
		if err := index.Register(ctx, w, leaseTTL); err != nil {
			t.Fatal(err)
		}
		var marks []placement.Mark
		for n := range uint32(30) {
			marks = append(marks, placement.Mark{Shard: n, Whole: i < 3})
		}
		if i < 4 {
			if err := index.Announce(ctx, w.Incarnation, id, marks); err != nil {
				t.Fatal(err)
			}
		}
	}
	d := newDirectory(index, func() placement.Worker { return all[4] }, slog.New(slog.DiscardHandler))
	d.refresh(ctx)
	first := map[string]int{}
	for n := range uint32(30) {
		peers := d.Holders(ctx, id, n)
		if len(peers) != 4 || peers[3].ID != "w3" || peers[3].Whole {
			t.Fatalf("shard %d: %v", n, peers)
		}
		first[peers[0].ID]++
	}
	for _, w := range all[:3] {
		if first[w.ID] != 10 {
			t.Errorf("%s is asked first for %d of 30 shards", w.ID, first[w.ID])
		}
	}
}
