package redisplace

import (
	"context"
	"strings"
	"time"
)

// Server asks Redis what it is and what its clock says; version is "" if it
// keeps that to itself, as embedded ones do.
func (x *Index) Server(ctx context.Context) (version string, now time.Time, err error) {
	if now, err = x.c.Time(ctx).Result(); err != nil {
		return "", time.Time{}, failed(ctx, "time", err)
	}
	info, err := x.c.Info(ctx, "server").Result()
	if err != nil {
		return "", now, nil // it answered; only its version is not known
	}
	for line := range strings.SplitSeq(info, "\n") {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "redis_version:"); ok {
			return v, now, nil
		}
	}
	return "", now, nil
}
