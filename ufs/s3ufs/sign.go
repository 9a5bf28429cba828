package s3ufs

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"stoker.dev"
)

// mostSkew is how far clocks may differ before it is worth correcting: S3
// refuses from 15 minutes on.
const mostSkew = time.Minute

// sign signs a GET and returns the access key that signed it, "" for none.
func (f *FS) sign(ctx context.Context, req *http.Request, key string) (by string, err error) {
	if f.creds == nil {
		return "", nil
	}
	c, err := f.creds.Retrieve(ctx)
	if err != nil {
		return "", f.noCredentials(ctx, key, err)
	}
	req.Header.Set(payloadHeader, unsigned)
	if err := f.signer.SignHTTP(ctx, c, req, unsigned, "s3", f.region, f.now()); err != nil {
		return "", stoker.Errorf(stoker.KindInternal, "s3.get", key, "sign: %w", err)
	}
	return c.AccessKeyID, nil
}

// storeTime signs what the SDK sends by the store's clock, as sign does. The
// SDK's own idea of the time is left aside: from its second request on it has
// corrected it, too.
type storeTime struct{ f *FS }

// SignHTTP implements s3.HTTPSignerV4.
func (s storeTime) SignHTTP(ctx context.Context, c aws.Credentials, r *http.Request, payload, service, region string, _ time.Time, o ...func(*v4.SignerOptions)) error {
	return s.f.signer.SignHTTP(ctx, c, r, payload, service, region, s.f.now(), o...)
}

// now is the time by the store's clock, as far as it is known.
func (f *FS) now() time.Time { return time.Now().Add(time.Duration(f.skew.Load())) }

// expired has credentials that the store calls expired fetched anew, unless
// that has been done since they signed: by is the access key, "" if unknown.
func (f *FS) expired(ctx context.Context, err error, by string) {
	var t *trouble
	if !errors.As(err, &t) || t.about != expired {
		return
	}
	cache, ok := f.creds.(interface{ Invalidate() })
	if !ok {
		return
	}
	if c, err := f.creds.Retrieve(ctx); err == nil && (by == "" || c.AccessKeyID == by) {
		cache.Invalidate()
	}
}

// skewed is the refusal of a request whose time is not the store's. The store's
// Date says how far the clocks are apart; from then on requests are signed with
// its time. That is tried once for each difference.
func (f *FS) skewed(op, key, text string, h http.Header) error {
	date, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return stoker.Errorf(stoker.KindDenied, op, key, "this machine's clock differs from the store's: set it by NTP (%s)", text)
	}
	skew := time.Until(date).Round(time.Second)
	known := time.Duration(f.skew.Swap(int64(skew)))
	kind := stoker.KindDenied
	if diff := skew - known; diff > mostSkew || diff < -mostSkew {
		kind = stoker.KindTransient
	}
	way := "behind"
	if skew < 0 {
		way, skew = "ahead of", -skew
	}
	return stoker.Errorf(kind, op, key, "this machine's clock is %v %s the store's: set it by NTP (%s)", skew, way, text)
}
