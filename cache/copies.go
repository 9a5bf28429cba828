package cache

import (
	"context"

	"stoker.dev"
)

// LoadCopies is Load for a part whose shards others have: what it brings in comes
// from them alone, at the rate of such copies. What they do not have stays away.
func (c *Cache) LoadCopies(ctx context.Context, planID stoker.ID, part int) error {
	return c.begin(ctx, loadKey{planID, part}, true)
}
