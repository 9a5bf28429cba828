package budget

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"stoker.dev"
)

// work is what a member does, in one class.
type work Class

func (w work) Class() Class { return Class(w) }
func (w work) Rank() int64  { return 0 }

// ranked is work with a rank.
type ranked struct {
	work
	rank int64
}

func (r ranked) Rank() int64 { return r.rank }

const (
	second = 50e6 // bytes, the budget of the tests
	block  = 256 << 10
)

// cluster is some members that share one endpoint, and a record of what they took.
type cluster struct {
	t     *testing.T
	table Table
	limit float64

	mu    sync.Mutex
	start time.Time
	took  []float64          // by tenths of a second
	of    map[string]float64 // by dataset, since it was last reset
}

func newCluster(t *testing.T, table Table) *cluster {
	return &cluster{t: t, table: table, limit: second, start: time.Now(), of: map[string]float64{}}
}

type member struct {
	c    *cluster
	b    *Budgets
	e    *Endpoint
	stop context.CancelFunc
	ctx  context.Context
	run  sync.WaitGroup
}

func (c *cluster) join(count func() int) *member {
	m := &member{c: c}
	m.ctx, m.stop = context.WithCancel(c.t.Context())
	m.b = New(Options{Limits: Limits{Bytes: Rules{{PerSecond: c.limit}}}, Table: c.table, Member: stoker.NewIncarnation(), Count: count})
	m.e = m.b.Endpoint("store")
	m.run.Go(func() { m.b.Run(m.ctx) })
	return m
}

func (m *member) leave() {
	m.stop()
	m.run.Wait()
}

// busy takes as much as it may, in some streams, until the returned function is called.
func (m *member) busy(class Class, name string, streams int) (stop func()) {
	return m.busyAs(work(class), name, streams)
}

func (m *member) busyAs(who Ranked, name string, streams int) (stop func()) {
	ctx, cancel := context.WithCancel(m.ctx)
	var wg sync.WaitGroup
	for range streams {
		wg.Go(func() {
			for m.e.Take(ctx, Bytes, who, name, block, nil) == nil {
				m.c.note(name, block)
				<-time.After(time.Millisecond) // what the store takes
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}

func (c *cluster) note(name string, n float64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := int(time.Since(c.start) / (100 * time.Millisecond))
	for len(c.took) <= at {
		c.took = append(c.took, 0)
	}
	c.took[at] += n
	c.of[name] += n
}

// share is what each dataset took in the next d, as a part of the limit.
func (c *cluster) share(d time.Duration) map[string]float64 {
	c.mu.Lock()
	clear(c.of)
	c.mu.Unlock()
	<-time.After(d)
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]float64{}
	for n, b := range c.of {
		out[n] = b / c.limit / d.Seconds()
	}
	return out
}

// windows checks every ten seconds between two moments: never more than the
// limit and a twentieth; and if wanted is set, never less than it less that.
func (c *cluster) windows(from, to time.Duration, wanted bool) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	const width = 100
	most, least := 0.0, 2.0
	for i := int(from / (100 * time.Millisecond)); i+width <= min(len(c.took), int(to/(100*time.Millisecond))); i++ {
		sum := 0.0
		for _, n := range c.took[i : i+width] {
			sum += n
		}
		share := sum / (10 * c.limit)
		most, least = max(most, share), min(least, share)
	}
	c.t.Logf("ten seconds between %v and %v: %.3f to %.3f of the budget", from, to, least, most)
	if most > 1.05 {
		c.t.Errorf("ten seconds took %.3f of the budget", most)
	}
	if wanted && (least < 0.95 || least > 1.05) {
		c.t.Errorf("ten seconds took only %.3f of the budget", least)
	}
}

func (c *cluster) at() time.Duration { return time.Since(c.start) }

// Three members keep the cluster's total, with joins, leaves and demand that
// moves from one to another; what an idle one does not use is with the busy
// ones within seconds.
func TestTotalIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, NewMem())
		a, b, d := c.join(nil), c.join(nil), c.join(nil)
		stopA := a.busy(Preload, "one", 24)
		<-time.After(5 * time.Second)
		settled := c.at()
		<-time.After(15 * time.Second)
		c.windows(settled, c.at(), true) // one busy, two idle
		stopB := b.busy(Preload, "one", 24)
		stopD := d.busy(Preload, "two", 24)
		<-time.After(15 * time.Second)
		c.windows(settled, c.at(), true)
		stopA()
		<-time.After(15 * time.Second)
		e := c.join(nil)
		stopE := e.busy(Preload, "one", 24)
		<-time.After(15 * time.Second)
		stopB()
		b.leave()
		<-time.After(5 * time.Second)
		stopD()
		stopE()
		stopA = a.busy(Demand, "two", 24)
		<-time.After(15 * time.Second)
		c.windows(settled, c.at(), false)
		c.windows(c.at()-12*time.Second, c.at(), true)
		stopA()
		for _, m := range []*member{a, d, e} {
			m.leave()
		}
	})
}

// Two datasets get the same, although one is loaded by three members and the
// other by one of these.
func TestLoadsShareFairly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, NewMem())
		var stops []func()
		var all []*member
		for i := range 3 {
			m := c.join(nil)
			all = append(all, m)
			stops = append(stops, m.busy(Preload, "wide", 24))
			if i == 0 {
				stops = append(stops, m.busy(Preload, "narrow", 8))
			}
		}
		<-time.After(10 * time.Second)
		got := c.share(20 * time.Second)
		t.Logf("%v", got)
		for _, name := range []string{"wide", "narrow"} {
			if got[name] < 0.44 || got[name] > 0.53 {
				t.Errorf("%s takes %.3f of the budget, want half", name, got[name])
			}
		}
		for _, stop := range stops {
			stop()
		}
		for _, m := range all {
			m.leave()
		}
	})
}

// What readers wait for is served before prefetches, these before preloads and
// these before repairs, on all members alike.
func TestClassesInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, NewMem())
		a, b := c.join(nil), c.join(nil)
		stops := []func(){a.busy(Repair, "repair", 24), b.busy(Preload, "preload", 24)}
		<-time.After(5 * time.Second)
		got := c.share(10 * time.Second)
		if got["preload"] < 0.9 || got["repair"] > 0.05 {
			t.Errorf("a preload and a repair elsewhere: %v", got)
		}
		stops = append(stops, a.busy(Prefetch, "prefetch", 24))
		<-time.After(5 * time.Second)
		got = c.share(10 * time.Second)
		if got["prefetch"] < 0.9 || got["preload"] > 0.05 {
			t.Errorf("a prefetch and a preload elsewhere: %v", got)
		}
		stops = append(stops, b.busy(Demand, "demand", 24))
		<-time.After(5 * time.Second)
		got = c.share(10 * time.Second)
		if got["demand"] < 0.9 || got["prefetch"] > 0.05 {
			t.Errorf("readers and a prefetch elsewhere: %v", got)
		}
		c.windows(0, c.at(), false)
		for _, stop := range stops {
			stop()
		}
		a.leave()
		b.leave()
	})
}

// Of two preloads the one with the higher rank is served first, on its own member
// and elsewhere; those of one rank share.
func TestHigherRankGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, NewMem())
		a, b := c.join(nil), c.join(nil)
		stops := []func(){a.busyAs(ranked{work(Preload), 0}, "low", 24), b.busyAs(ranked{work(Preload), 5}, "high", 24)}
		<-time.After(5 * time.Second)
		if got := c.share(10 * time.Second); got["high"] < 0.9 || got["low"] > 0.05 {
			t.Errorf("on two members: %v", got)
		}
		stops = append(stops, b.busyAs(ranked{work(Preload), 9}, "highest", 24))
		<-time.After(5 * time.Second)
		if got := c.share(10 * time.Second); got["highest"] < 0.9 || got["high"] > 0.05 {
			t.Errorf("on one member: %v", got)
		}
		c.windows(0, c.at(), false)
		for _, stop := range stops {
			stop()
		}
		a.leave()
		b.leave()
	})
}

// A reader who comes to a member whose budget a preload takes whole waits for
// no more than what is under way.
func TestReaderDoesNotQueueBehindPreload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, NewMem())
		a, b := c.join(nil), c.join(nil)
		stops := []func(){a.busy(Preload, "preload", 24), b.busy(Preload, "preload", 24)}
		<-time.After(5 * time.Second)
		for range 100 {
			began := time.Now()
			if err := a.e.Take(t.Context(), Bytes, work(Demand), "read", 4*block, nil); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > 0 {
				t.Fatalf("a reader waited %v", took)
			}
			<-time.After(100 * time.Millisecond)
		}
		for _, stop := range stops {
			stop()
		}
		a.leave()
		b.leave()
	})
}

// breakable is a table that can be away, and can be emptied.
type breakable struct {
	mu   sync.Mutex
	t    *Mem
	away bool
}

func (x *breakable) set(away, empty bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.away = away; empty {
		x.t = NewMem()
	}
}

func (x *breakable) Claim(ctx context.Context, endpoint string, c Claim, total Amount, ttl time.Duration) ([]Entry, error) {
	x.mu.Lock()
	t, away := x.t, x.away
	x.mu.Unlock()
	if away {
		return nil, errors.New("away")
	}
	return t.Claim(ctx, endpoint, c, total, ttl)
}

func (x *breakable) Quit(ctx context.Context, endpoint string, member stoker.Incarnation) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.t.Quit(ctx, endpoint, member)
}

// Without the table each member takes an equal share, and the total is never
// passed on the way: neither when the table goes, nor when it comes back empty.
func TestTableIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := &breakable{t: NewMem()}
		c := newCluster(t, table)
		var all []*member
		for range 4 {
			all = append(all, c.join(nil))
		}
		stops := []func(){all[0].busy(Preload, "one", 24), all[1].busy(Preload, "two", 24)}
		<-time.After(10 * time.Second)
		table.set(true, false)
		stops = append(stops, all[2].busy(Demand, "three", 24), all[3].busy(Demand, "four", 24))
		<-time.After(2 * claimTTL)
		got := c.share(10 * time.Second)
		for name, share := range got {
			if share < 0.22 || share > 0.26 {
				t.Errorf("%s takes %.3f without the table, want a quarter", name, share)
			}
		}
		back := c.at()
		table.set(false, true)
		<-time.After(25 * time.Second)
		c.windows(0, c.at(), false)
		c.windows(back+10*time.Second, c.at(), true)
		got = c.share(10 * time.Second)
		if got["three"] < 0.4 || got["one"] > 0.05 {
			t.Errorf("readers do not go first when the table is back: %v", got)
		}
		for _, stop := range stops {
			stop()
		}
		for _, m := range all {
			m.leave()
		}
	})
}

// A member that alone cannot reach the table takes no more than it was granted,
// until the others must take it for gone.
func TestOneIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewMem()
		cut := &breakable{t: table}
		c := newCluster(t, table)
		a, b := c.join(nil), c.join(nil)
		c.table = cut
		lone := c.join(nil)
		stops := []func(){a.busy(Preload, "one", 24), b.busy(Preload, "two", 24)}
		<-time.After(10 * time.Second)
		cut.set(true, false)
		stops = append(stops, lone.busy(Preload, "three", 24))
		<-time.After(claimTTL - 2*time.Second)
		c.windows(0, c.at(), false)
		for _, stop := range stops {
			stop()
		}
		for _, m := range []*member{a, b, lone} {
			m.leave()
		}
	})
}

// A member that never heard of others takes little: there may be many.
func TestAloneFromTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, k := range []struct {
			count int
			want  float64
		}{{0, 1.0 / unknown}, {5, 0.2}} {
			c := newCluster(t, &breakable{t: NewMem(), away: true})
			m := c.join(func() int { return k.count })
			stop := m.busy(Preload, "one", 24)
			<-time.After(10 * time.Second)
			if got := c.share(20 * time.Second)["one"]; got < 0.9*k.want || got > 1.1*k.want {
				t.Errorf("%d known: takes %.4f of the budget, want %.4f", k.count, got, k.want)
			}
			stop()
			m.leave()
		}
	})
}

// Who gives up takes nothing with him and keeps nobody waiting.
func TestGivingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, NewMem())
		m := c.join(nil)
		<-time.After(time.Second)
		m.e.Pay(Bytes, work(Preload), "one", 3*second) // some seconds of debt
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := m.e.Take(ctx, Bytes, work(Preload), "one", second*1000, nil); err == nil {
			t.Fatal("it was granted what is not there")
		}
		began := time.Now()
		blocked := 0
		err := m.e.Take(t.Context(), Bytes, work(Preload), "one", 1, func() func() { blocked++; return func() { blocked++ } })
		if err != nil || time.Since(began) > 6*time.Second || blocked != 2 {
			t.Errorf("after %v: %v, told %d times", time.Since(began), err, blocked)
		}
		m.leave()
	})
}

func TestRules(t *testing.T) {
	for _, c := range []struct {
		text string
		kind int
		at   string
		want float64
	}{
		{"10GB/s", Bytes, "s3.example", 1e10},
		{"1MiB", Bytes, "s3.example", 1 << 20},
		{"5000/s", Requests, "s3.example", 5000},
		{"s3.example:9000=2GB/s,1GB/s", Bytes, "s3.example:9000", 2e9},
		{"s3.example:9000=2GB/s,1GB/s", Bytes, "s3.example", 1e9},
		{"*.example=2GB/s", Bytes, "s3.example", 2e9},
		{"*.example=2GB/s", Bytes, "s3.other", 0},
	} {
		r, err := Parse(c.text, c.kind)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if got := r.Of(c.at); got != c.want {
			t.Errorf("%s at %s is %v, want %v", c.text, c.at, got, c.want)
		}
		if again, err := Parse(r.String(), c.kind); err != nil || again.Of(c.at) != c.want {
			t.Errorf("%s, written as %s, is read as %v (%v)", c.text, r, again, err)
		}
	}
	for _, text := range []string{"", "fast", "-1GB/s", "1", "=1GB/s", "[=1GB/s", "1GB/s,", "NaN", "1e400", "10GB/h"} {
		if r, err := Parse(text, Bytes); err == nil {
			t.Errorf("%q is read as %v", text, r)
		}
	}
	for _, text := range []string{"1GB/s", "1/s", "0"} {
		if r, err := Parse(text, Requests); err == nil {
			t.Errorf("%q requests are read as %v", text, r)
		}
	}
}
