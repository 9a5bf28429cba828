package s3ufs

import (
	"context"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"

	"stoker.dev"
)

// answerError reads what the store says against a GET.
func (f *FS) answerError(op string, resp *http.Response, key string) error {
	var e struct {
		Code    string
		Message string
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
	if err == nil {
		err = xml.Unmarshal(raw, &e)
	}
	if err != nil {
		e.Code = "" // an answer without a body that we know
	}
	return f.refusal(op, key, resp.StatusCode, e.Code, e.Message, resp.Header)
}

// retryAfter reads Retry-After: seconds, or a date. 0 = it says nothing.
func retryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if s, err := strconv.Atoi(text); err == nil && s > 0 {
		return time.Duration(min(s, 1<<20)) * time.Second
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	now := time.Now()
	if t, err := http.ParseTime(h.Get("Date")); err == nil {
		now = t // both by the store's own clock
	}
	return max(0, at.Sub(now))
}

// refusal is the one table from S3's statuses and codes to kinds.
func (f *FS) refusal(op, key string, status int, code, message string, h http.Header) error {
	text := strings.TrimSpace(strconv.Itoa(status) + " " + code + " " + message)
	busy := code == "SlowDown" || code == "ServiceUnavailable"
	switch status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		busy = true
	}
	switch {
	case code == "NoSuchBucket":
		return stoker.Errorf(stoker.KindNotExist, op, key, "there is no bucket %s", f.bucket)
	case status == http.StatusNotFound:
		return stoker.Errorf(stoker.KindNotExist, op, key, "no such object in bucket %s", f.bucket)
	case status == http.StatusPreconditionFailed, status == http.StatusRequestedRangeNotSatisfiable:
		return stoker.Errorf(stoker.KindStale, op, key, "changed since it was listed (%s)", text)
	case code == "RequestTimeTooSkewed":
		return f.skewed(op, key, text, h)
	case code == "ExpiredToken", code == "ExpiredTokenException", code == "TokenRefreshRequired":
		return &trouble{stoker.Error{Op: op, Key: key, Kind: stoker.KindTransient, Err: errors.New("the credentials have expired: renew them where the daemons run (" + text + ")")}, 0, expired}
	case busy:
		return &trouble{stoker.Error{Op: op, Key: key, Kind: stoker.KindTransient, Err: errors.New("the store answers " + text)}, retryAfter(h), overload}
	case status == http.StatusForbidden, status == http.StatusUnauthorized:
		return stoker.Errorf(stoker.KindDenied, op, key, "the store refuses: check the credentials and the policy of bucket %s (%s)", f.bucket, text)
	case status == http.StatusRequestTimeout, status >= 500, code == "RequestTimeout":
		return &trouble{stoker.Error{Op: op, Key: key, Kind: stoker.KindTransient, Err: errors.New("the store answers " + text)}, retryAfter(h), other}
	case status == http.StatusMovedPermanently, status == http.StatusTemporaryRedirect:
		return stoker.Errorf(stoker.KindInvalid, op, key, "bucket %s is in another region: set --region (%s)", f.bucket, text)
	default:
		return stoker.Errorf(stoker.KindInvalid, op, key, "the store refuses the request at bucket %s: check its name and the endpoint (%s)", f.bucket, text)
	}
}

// What a trouble is about.
const (
	other = iota
	overload
	unreached
	expired
)

// trouble passes, and says more than its kind: package guard asks it.
type trouble struct {
	inner stoker.Error
	after time.Duration
	about int
}

func (e *trouble) Error() string { return e.inner.Error() }
func (e *trouble) Unwrap() error { return &e.inner }

// RetryAfter is when the store wants to be asked again.
func (e *trouble) RetryAfter() time.Duration { return e.after }

// Throttled reports whether the store has too much to do.
func (e *trouble) Throttled() bool { return e.about == overload }

// NoAnswer reports whether the store was not reached, or did not answer.
func (e *trouble) NoAnswer() bool { return e.about == unreached }

// noAnswer is an error of the network.
func (f *FS) noAnswer(ctx context.Context, op, key string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := f.untrusted(op, err); err != nil {
		return err
	}
	var creds interface{ ProviderName() string }
	if errors.As(err, &creds) || strings.Contains(err.Error(), "credentials") {
		return f.noCredentials(ctx, key, err)
	}
	return &trouble{*stoker.Errorf(stoker.KindTransient, op, key, "no answer from %s: %w", f.base, err), 0, unreached}
}

func (f *FS) noCredentials(ctx context.Context, key string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return stoker.Errorf(stoker.KindDenied, "s3", key, "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, where the daemons run; or register the dataset with --anonymous (%w)", err)
}

// sdkError gives an error of the SDK its kind.
func (f *FS) sdkError(ctx context.Context, op, key string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var withStatus interface{ HTTPStatusCode() int }
	var withCode interface{ ErrorCode() string }
	status, code := 0, ""
	if errors.As(err, &withStatus) {
		status = withStatus.HTTPStatusCode()
	}
	if errors.As(err, &withCode) {
		code = withCode.ErrorCode()
	}
	if status == 0 && code == "" {
		return f.noAnswer(ctx, op, key, err)
	}
	if status/100 == 2 {
		return stoker.Errorf(stoker.KindTransient, op, key, "the answer cannot be read: %w", err)
	}
	h := http.Header{}
	var resp *awshttp.ResponseError
	if errors.As(err, &resp) && resp.Response != nil && resp.Response.Response != nil {
		h = resp.Response.Header
	}
	refused := f.refusal(op, key, status, code, "", h)
	f.expired(ctx, refused, "")
	return refused
}
