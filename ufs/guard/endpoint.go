package guard

import (
	"context"

	"stoker.dev/ufs/budget"
)

// Endpoint is what all stores of one host share: the limit of requests in
// flight, which follows what that host can take, and the cluster's budget.
type Endpoint struct {
	limit  *limiter
	budget *budget.Endpoint
}

// NewEndpoint makes one. maxInFlight is as in Options; a nil budget has no limit.
func NewEndpoint(maxInFlight int, b *budget.Endpoint) *Endpoint {
	return &Endpoint{limit: newLimiter(Options{MaxInFlight: maxInFlight}.withDefaults().MaxInFlight), budget: b}
}

// InFlight returns how many data requests may be in flight at present, and how
// many are.
func (e *Endpoint) InFlight() (limit, now int) { return e.limit.now() }

type flowKey struct{}

// WithFlow says for which dataset the requests of a context are: datasets get
// equal parts of a budget.
func WithFlow(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, flowKey{}, name)
}

func flowOf(ctx context.Context) string {
	name, _ := ctx.Value(flowKey{}).(string)
	return name
}

// creditBytes is how much of a body is taken from the budget at a time.
const creditBytes = 256 << 10

// earn takes from the budget what is read next of a body, and returns how much
// may be read. While it waits, its request does not keep demand from running.
func (b *body) earn(n int64) (int64, error) {
	if b.f.at.budget == nil {
		return n, nil
	}
	if b.credit <= 0 {
		want := min(b.left, creditBytes)
		err := b.f.at.budget.Take(b.ctx, budget.Bytes, b.who(), b.flow, want, b.park)
		if err != nil {
			return 0, err
		}
		b.credit += want
	}
	return min(n, b.credit), nil
}

// park notes that the body waits for the budget; what it returns, that it goes on.
func (b *body) park() func() {
	end, goOn := turn(b.ctx), b.f.at.limit.park()
	return func() {
		end()
		goOn()
	}
}

// pace waits until the load that the body is for may read what is left of it.
func (b *body) pace() error {
	if b.paced >= b.left {
		return nil
	}
	n, err := b.load.take(b.ctx, b.u, b.left-b.paced)
	b.paced += n
	return err
}

func (b *body) who() claimant { return claimant{b.u, b.load} }

// repay gives back what was taken and not read.
func (b *body) repay() {
	b.f.at.budget.Pay(budget.Bytes, b.who(), b.flow, -b.credit)
	b.load.giveBack(b.paced)
	b.credit, b.paced = 0, 0
}

// mayAsk takes one request from the budget.
func (f *FS) mayAsk(ctx context.Context, who claimant, flow string) error {
	return f.at.budget.Take(ctx, budget.Requests, who, flow, 1, nil)
}
