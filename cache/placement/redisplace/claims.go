package redisplace

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"stoker.dev"
	"stoker.dev/ufs/budget"
)

// The claims of an endpoint's budget are one more key:
//
//	P:ufs:ENDPOINT HASH  incarnation -> end of the claim in ms of Redis' own TIME, bytes and requests granted, flows as JSON
//
// with one field more, "settle", the time until which nobody is granted more
// than he held. The key ends some time after the last claim.
var _ budget.Table = (*Index)(nil)

// claim does what has to be done at once: who was granted how much decides how
// much there is. ARGV: member, ttl, flows, and of bytes and of requests: total,
// asked, held; at last for how long an emptied table settles.
var claim = redis.NewScript(`
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local free, known, settle, out = { tonumber(ARGV[4]), tonumber(ARGV[7]) }, false, 0, {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if all[i] == 'settle' then
    settle = tonumber(all[i + 1])
  else
    local ends, bytes, requests = string.match(all[i + 1], '^(%S+) (%S+) (%S+) ')
    if not ends or tonumber(ends) <= now then
      redis.call('HDEL', KEYS[1], all[i])
    elseif all[i] == ARGV[1] then
      known = true
    else
      free[1] = free[1] - tonumber(bytes)
      free[2] = free[2] - tonumber(requests)
      out[#out + 1] = all[i]
      out[#out + 1] = all[i + 1]
    end
  end
end
local held = { tonumber(ARGV[6]), tonumber(ARGV[9]) }
if not known and (held[1] > 0 or held[2] > 0) then
  settle = now + ARGV[10]
  redis.call('HSET', KEYS[1], 'settle', settle)
end
local granted = {}
for k = 1, 2 do
  local total, asked = tonumber(ARGV[1 + 3 * k]), tonumber(ARGV[2 + 3 * k])
  granted[k] = math.max(0, math.min(asked, free[k]))
  if not known and held[k] > 0 then
    granted[k] = math.min(held[k], total)
  elseif now < settle then
    granted[k] = math.min(granted[k], held[k])
  end
end
local mine = string.format('%.0f %.3f %.3f ', now + ARGV[2], granted[1], granted[2]) .. ARGV[3]
redis.call('HSET', KEYS[1], ARGV[1], mine)
redis.call('PEXPIRE', KEYS[1], 4 * ARGV[2])
out[#out + 1] = ARGV[1]
out[#out + 1] = mine
return out`)

func (x *Index) claims(endpoint string) string { return x.prefix + ":ufs:" + endpoint }

// Claim implements budget.Table.
func (x *Index) Claim(ctx context.Context, endpoint string, c budget.Claim, total budget.Amount, ttl time.Duration) ([]budget.Entry, error) {
	flows, err := json.Marshal(c.Flows)
	if err != nil {
		return nil, stoker.Errorf(stoker.KindInternal, "redis.claim", endpoint, "%w", err)
	}
	args := []any{c.Member.String(), ttl.Milliseconds(), flows}
	for k := range total {
		for _, f := range []float64{total[k], c.Ask[k], c.Held[k]} {
			args = append(args, strconv.FormatFloat(f, 'f', 3, 64))
		}
	}
	args = append(args, budget.SettleFor.Milliseconds())
	said, err := claim.Run(ctx, x.c, []string{x.claims(endpoint)}, args...).StringSlice()
	if err != nil {
		return nil, failed(ctx, "claim", err)
	}
	var out []budget.Entry
	for i := 0; i+1 < len(said); i += 2 {
		e, err := parseClaim(said[i], said[i+1])
		if err != nil {
			return nil, stoker.Errorf(stoker.KindCorrupt, "redis.claim", endpoint, "%w", err)
		}
		out = append(out, e)
	}
	return out, nil
}

func parseClaim(member, text string) (e budget.Entry, err error) {
	if err := e.Member.UnmarshalText([]byte(member)); err != nil {
		return e, err
	}
	var ends float64
	var flows string
	if _, err := fmt.Sscanf(text, "%g %g %g %s", &ends, &e.Granted[budget.Bytes], &e.Granted[budget.Requests], &flows); err != nil {
		return e, fmt.Errorf("claim %.80q: %w", text, err)
	}
	return e, json.Unmarshal([]byte(flows), &e.Flows)
}

// Quit implements budget.Table.
func (x *Index) Quit(ctx context.Context, endpoint string, member stoker.Incarnation) error {
	return failed(ctx, "quit", x.c.HDel(ctx, x.claims(endpoint), member.String()).Err())
}
