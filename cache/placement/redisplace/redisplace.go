// Package redisplace is the placement index in Redis (7.0 or newer, Redis
// Cluster included: no command needs two slots). Keys, with prefix P:
//
//	P:{reg}:format STRING of all the others; unknown ones are refused
//	P:{reg}:live   HASH  incarnation -> the worker as JSON
//	P:{reg}:lease  ZSET  incarnation, scored by the end of its lease in ms of Redis' own TIME
//	P:p:MANIFEST:G HASH  for shards 32 G to 32 G + 31: field = shard mod 32 (1 byte) + incarnation (8 bytes), value "w" whole or "p" partial
//
// A group of 32 shards with up to 4 holders each stays below 128 fields, which
// Redis keeps as one compact listpack: 17.5 bytes for a placement. Placements
// of incarnations without a lease do not count, and are deleted when somebody
// reads past them after the worker was forgotten. Nothing here is the truth:
// when Redis has lost its data, Renew says so and the workers announce again.
package redisplace

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"stoker.dev"
	"stoker.dev/cache/placement"
)

var _ placement.Index = (*Index)(nil)

const (
	groupShards = placement.GroupShards
	// forgetAfter is how long a worker without a lease is remembered.
	forgetAfter = 10 * time.Minute
	batch       = 1000 // commands of one pipeline
	// format is that of all keys. Fields are added to workers without a new one.
	format      = "1"
	otherFormat = "FORMAT " // begins what scripts say of keys of another one
)

// Index is a placement index in Redis. It may be used from any goroutine.
type Index struct {
	c      redis.UniversalClient
	prefix string
	accept func(address string) bool
}

// Close closes the connections.
func (x *Index) Close() error { return x.c.Close() }

func (x *Index) live() string   { return x.prefix + ":{reg}:live" }
func (x *Index) lease() string  { return x.prefix + ":{reg}:lease" }
func (x *Index) format() string { return x.prefix + ":{reg}:format" }

func (x *Index) group(manifest stoker.ID, g uint32) string {
	return x.prefix + ":p:" + manifest.String() + ":" + strconv.FormatUint(uint64(g), 10)
}

func field(shard uint32, n stoker.Incarnation) string {
	var b [9]byte
	b[0] = byte(shard % groupShards)
	binary.BigEndian.PutUint64(b[1:], uint64(n))
	return string(b[:])
}

// failed gives an error of Redis its kind.
func failed(ctx context.Context, op string, err error) error {
	if err == nil || ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	if at := strings.Index(err.Error(), otherFormat); at >= 0 {
		return stoker.Errorf(stoker.KindInvalid, "redis."+op, "", "Redis holds keys of %.30s under this --redis-prefix, this program knows %s: upgrade it, or give another prefix",
			strings.ToLower(err.Error()[at:]), format)
	}
	return stoker.Errorf(stoker.KindTransient, "redis."+op, "", "%w", err)
}

// Scripts read the time where the lease is kept, so that clocks of workers do
// not matter.
var (
	register = redis.NewScript(`
local f = redis.call('GET', KEYS[3])
if f and f ~= ARGV[4] then return redis.error_reply('` + otherFormat + `' .. f) end
if not f then redis.call('SET', KEYS[3], ARGV[4]) end
local t = redis.call('TIME')
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], t[1] * 1000 + math.floor(t[2] / 1000) + ARGV[3], ARGV[1])
return 1`)
	renew = redis.NewScript(`
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local ends = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not ends or tonumber(ends) <= now then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[1])
return 1`)
	// leases returns the time, then each incarnation and its lease's end.
	leases = redis.NewScript(`
local t = redis.call('TIME')
local out = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
table.insert(out, 1, tostring(t[1] * 1000 + math.floor(t[2] / 1000)))
return out`)
	// workers forgets the long dead and returns the live.
	workers = redis.NewScript(`
local f = redis.call('GET', KEYS[3])
if f and f ~= ARGV[2] then return redis.error_reply('` + otherFormat + `' .. f) end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[1])) do
  redis.call('HDEL', KEYS[1], dead)
  redis.call('ZREM', KEYS[2], dead)
end
local out = {}
for _, n in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. now, '+inf')) do
  local w = redis.call('HGET', KEYS[1], n)
  if w then out[#out + 1] = w end
end
return out`)
)

func (x *Index) put(ctx context.Context, s *redis.Script, op string, w placement.Worker, ttl time.Duration) (int, error) {
	body, err := json.Marshal(w)
	if err != nil {
		return 0, stoker.Errorf(stoker.KindInternal, "redis."+op, w.ID, "%w", err)
	}
	n, err := s.Run(ctx, x.c, []string{x.live(), x.lease(), x.format()}, w.Incarnation.String(), body, ttl.Milliseconds(), format).Int()
	return n, failed(ctx, op, err)
}

// Register implements placement.Index. A worker whose address is not accepted
// is Invalid: nobody would find it.
func (x *Index) Register(ctx context.Context, w placement.Worker, ttl time.Duration) error {
	if x.accept != nil && !x.accept(w.Address) {
		return stoker.Errorf(stoker.KindInvalid, "redis.register", w.Address, "is not where workers may be: see --worker-networks and --advertise")
	}
	_, err := x.put(ctx, register, "register", w, ttl)
	return err
}

// Renew implements placement.Index.
func (x *Index) Renew(ctx context.Context, w placement.Worker, ttl time.Duration) (bool, error) {
	n, err := x.put(ctx, renew, "renew", w, ttl)
	return n == 1, err
}

// Leave implements placement.Index.
func (x *Index) Leave(ctx context.Context, n stoker.Incarnation) error {
	_, err := x.c.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.ZRem(ctx, x.lease(), n.String())
		p.HDel(ctx, x.live(), n.String())
		return nil
	})
	return failed(ctx, "leave", err)
}

// Workers implements placement.Index.
func (x *Index) Workers(ctx context.Context) ([]placement.Worker, error) {
	lines, err := workers.Run(ctx, x.c, []string{x.live(), x.lease(), x.format()}, forgetAfter.Milliseconds(), format).StringSlice()
	if err != nil {
		return nil, failed(ctx, "workers", err)
	}
	last := map[string]placement.Worker{} // lines come in the order of their leases' ends
	for _, l := range lines {
		var w placement.Worker
		if err := json.Unmarshal([]byte(l), &w); err != nil {
			return nil, stoker.Errorf(stoker.KindCorrupt, "redis.workers", "", "%w", err)
		}
		if x.accept == nil || x.accept(w.Address) {
			last[w.ID] = w
		}
	}
	out := slices.AppendSeq([]placement.Worker{}, maps.Values(last))
	slices.SortFunc(out, func(a, b placement.Worker) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// byGroup runs do for the shards of each group, in pipelines.
func (x *Index) byGroup(ctx context.Context, op string, groups map[uint32][]int, do func(p redis.Pipeliner, g uint32, at []int)) error {
	p, n := x.c.Pipeline(), 0
	flush := func() error {
		_, err := p.Exec(ctx)
		n = 0
		return failed(ctx, op, err)
	}
	for g, at := range groups {
		do(p, g, at)
		if n++; n >= batch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if n == 0 {
		return nil
	}
	return flush()
}

func groupsOf(count int, shard func(i int) uint32) map[uint32][]int {
	out := map[uint32][]int{}
	for i := range count {
		g := shard(i) / groupShards
		out[g] = append(out[g], i)
	}
	return out
}

// Announce implements placement.Index.
func (x *Index) Announce(ctx context.Context, n stoker.Incarnation, manifest stoker.ID, marks []placement.Mark) error {
	groups := groupsOf(len(marks), func(i int) uint32 { return marks[i].Shard })
	return x.byGroup(ctx, "announce", groups, func(p redis.Pipeliner, g uint32, at []int) {
		values := make([]any, 0, 2*len(at))
		for _, i := range at {
			state := "p"
			if marks[i].Whole {
				state = "w"
			}
			values = append(values, field(marks[i].Shard, n), state)
		}
		p.HSet(ctx, x.group(manifest, g), values...)
	})
}

// Withdraw implements placement.Index.
func (x *Index) Withdraw(ctx context.Context, n stoker.Incarnation, manifest stoker.ID, shards []uint32) error {
	groups := groupsOf(len(shards), func(i int) uint32 { return shards[i] })
	return x.byGroup(ctx, "withdraw", groups, func(p redis.Pipeliner, g uint32, at []int) {
		fields := make([]string, len(at))
		for i, j := range at {
			fields[i] = field(shards[j], n)
		}
		p.HDel(ctx, x.group(manifest, g), fields...)
	})
}

// leases says of each incarnation that the index remembers whether its lease
// is in force.
func (x *Index) leases(ctx context.Context) (map[stoker.Incarnation]bool, error) {
	said, err := leases.Run(ctx, x.c, []string{x.lease()}).StringSlice()
	if err != nil {
		return nil, failed(ctx, "holders", err)
	}
	live := map[stoker.Incarnation]bool{}
	now, err := strconv.ParseFloat(said[0], 64)
	for i := 1; i+1 < len(said) && err == nil; i += 2 {
		var n stoker.Incarnation
		if n.UnmarshalText([]byte(said[i])) != nil {
			continue // not ours
		}
		var ends float64
		ends, err = strconv.ParseFloat(said[i+1], 64)
		live[n] = ends > now
	}
	return live, failed(ctx, "holders", err)
}

// Holders implements placement.Index.
func (x *Index) Holders(ctx context.Context, manifest stoker.ID, shards []uint32) ([][]placement.Holder, error) {
	live, err := x.leases(ctx)
	if err != nil {
		return nil, err
	}
	groups := groupsOf(len(shards), func(i int) uint32 { return shards[i] })
	out := make([][]placement.Holder, len(shards))
	for some := range slices.Chunk(slices.Sorted(maps.Keys(groups)), batch) { // answers are large: no more at a time
		if err := x.holdersOf(ctx, manifest, shards, groups, some, live, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// holdersOf enters the live holders of the shards of some groups into out.
func (x *Index) holdersOf(ctx context.Context, manifest stoker.ID, shards []uint32, groups map[uint32][]int, some []uint32, live map[stoker.Incarnation]bool, out [][]placement.Holder) error {
	answers := make([]*redis.MapStringStringCmd, len(some))
	_, err := x.c.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, g := range some {
			answers[i] = p.HGetAll(ctx, x.group(manifest, g))
		}
		return nil
	})
	if err != nil {
		return failed(ctx, "holders", err)
	}
	for i, g := range some {
		at := groups[g]
		var forgotten []string
		for f, state := range answers[i].Val() {
			if len(f) != 9 {
				continue // not ours
			}
			n := stoker.Incarnation(binary.BigEndian.Uint64([]byte(f[1:])))
			alive, known := live[n]
			if !known {
				forgotten = append(forgotten, f)
			}
			if !alive {
				continue
			}
			for _, i := range at {
				if byte(shards[i]%groupShards) == f[0] {
					out[i] = append(out[i], placement.Holder{Incarnation: n, Whole: state == "w"})
				}
			}
		}
		if len(forgotten) > 0 {
			_ = x.c.HDel(ctx, x.group(manifest, g), forgotten...).Err() // the next reader tries again
		}
	}
	return nil
}

// Begun implements placement.Index.
func (x *Index) Begun(ctx context.Context, worker string, manifest stoker.ID, shards []uint32) ([]bool, bool, error) {
	all, err := x.c.HVals(ctx, x.live()).Result()
	if err != nil {
		return nil, false, failed(ctx, "begun", err)
	}
	var lives []stoker.Incarnation
	for _, line := range all {
		var w placement.Worker
		if err := json.Unmarshal([]byte(line), &w); err != nil {
			return nil, false, stoker.Errorf(stoker.KindCorrupt, "redis.begun", worker, "%w", err)
		}
		if w.ID == worker {
			lives = append(lives, w.Incarnation)
		}
	}
	out := make([]bool, len(shards))
	if len(lives) == 0 {
		return out, false, nil
	}
	answers := map[uint32]*redis.SliceCmd{}
	groups := groupsOf(len(shards), func(i int) uint32 { return shards[i] })
	err = x.byGroup(ctx, "begun", groups, func(p redis.Pipeliner, g uint32, at []int) {
		var fields []string
		for _, i := range at {
			for _, n := range lives {
				fields = append(fields, field(shards[i], n))
			}
		}
		answers[g] = p.HMGet(ctx, x.group(manifest, g), fields...)
	})
	if err != nil {
		return nil, false, err
	}
	for g, at := range groups {
		for k, v := range answers[g].Val() {
			if v != nil {
				out[at[k/len(lives)]] = true
			}
		}
	}
	return out, true, nil
}
