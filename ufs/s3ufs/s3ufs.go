// Package s3ufs reads one S3 bucket. The AWS SDK gives credentials,
// endpoints and HEAD; data and listings go through a lean signed GET on the same
// connections, which costs less than half of the SDK's CPU for small objects, and
// a fraction of it for pages of names.
// Nothing is retried here: package guard does that. An FS may be used from
// any goroutine.
package s3ufs

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"stoker.dev"
	"stoker.dev/ufs"
)

var _ ufs.FS = (*FS)(nil)

// defaultRegion signs requests to stores that have no regions.
const defaultRegion = "us-east-1"

// Options say which bucket, and how it is reached.
type Options struct {
	Bucket   string
	Location ufs.Location // endpoint, region, path style, anonymous, profile; its URI is not read
}

// FS is one bucket.
type FS struct {
	bucket string
	client *s3.Client
	http   *http.Client
	base   string // URL of the bucket, without a final slash
	host   string // and port, without the bucket's name
	region string
	creds  aws.CredentialsProvider // nil: anonymous
	signer *v4.Signer
	skew   atomic.Int64 // ns that the store's clock is ahead of this machine's, once it has complained
}

// tune makes a pool large enough for every request that a guard lets through.
func tune(t *http.Transport) {
	t.DialContext = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	t.MaxIdleConns, t.MaxIdleConnsPerHost = 1024, 256
	t.IdleConnTimeout = 60 * time.Second
	t.DisableCompression = true // lengths must be those of the object
	t.ReadBufferSize = 32 << 10
	t.ForceAttemptHTTP2 = false // HTTP/2 costs more for bulk data
	t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
}

// Open prepares access to a bucket. It reads the AWS environment and config
// files; it sends nothing.
func Open(ctx context.Context, o Options) (*FS, error) {
	if o.Bucket == "" || strings.ContainsAny(o.Bucket, "/?#%\\ \t\n") {
		return nil, stoker.Errorf(stoker.KindInvalid, "s3", o.Bucket, "is no name of a bucket")
	}
	f := &FS{bucket: o.Bucket, signer: v4.NewSigner(func(s *v4.SignerOptions) { s.DisableURIPathEscaping = true })}
	cfg, err := f.config(ctx, o.Location)
	if err != nil {
		return nil, err
	}
	f.http = &http.Client{Transport: http.DefaultTransport, CheckRedirect: noRedirect}
	if c, ok := cfg.HTTPClient.(*awshttp.BuildableClient); ok { // with AWS_CA_BUNDLE in it
		f.http.Transport = c.GetTransport()
	}
	cfg.HTTPClient = f.http
	f.client = s3.NewFromConfig(cfg, func(s *s3.Options) {
		if o.Location.Endpoint != "" {
			s.BaseEndpoint = aws.String(o.Location.Endpoint)
		}
		s.UsePathStyle = o.Location.PathStyle
		s.Retryer = aws.NopRetryer{}
		s.HTTPSignerV4 = storeTime{f}
		s.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		s.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	})
	used := f.client.Options()
	f.region = used.Region
	if !o.Location.Anonymous {
		f.creds = used.Credentials
	}
	if err := checkEndpoint(aws.ToString(used.BaseEndpoint)); err != nil {
		return nil, err
	}
	at, err := s3.NewDefaultEndpointResolverV2().ResolveEndpoint(ctx, s3.EndpointParameters{
		Bucket: aws.String(o.Bucket), Region: aws.String(f.region), Endpoint: used.BaseEndpoint,
		ForcePathStyle: aws.Bool(used.UsePathStyle), UseFIPS: aws.Bool(false), UseDualStack: aws.Bool(false), Accelerate: aws.Bool(false),
		DisableMultiRegionAccessPoints: aws.Bool(true),
	})
	if err != nil {
		return nil, stoker.Errorf(stoker.KindInvalid, "s3", o.Bucket, "%w", err)
	}
	f.base = strings.TrimSuffix(at.URI.String(), "/")
	f.host = strings.TrimPrefix(strings.ToLower(at.URI.Host), strings.ToLower(o.Bucket)+".")
	return f, nil
}

// Endpoint is the host, with its port if there is one, that serves the bucket
// and others: what limits are set for.
func (f *FS) Endpoint() string { return f.host }

// checkEndpoint keeps out, above all, user:password@: an endpoint is stored,
// logged and shown.
func checkEndpoint(u string) error {
	p, err := url.Parse(u)
	switch {
	case u == "":
		return nil
	case strings.Contains(u, "@"): // not shown: it may be a secret
		return stoker.Errorf(stoker.KindInvalid, "s3", "endpoint", "holds credentials: the daemons have them, name them with --profile")
	case err != nil || p.Scheme != "http" && p.Scheme != "https" || p.Host == "":
		return stoker.Errorf(stoker.KindInvalid, "s3", u, "is no endpoint: write http://host:port or https://host")
	case p.RawQuery != "" || p.Fragment != "":
		return stoker.Errorf(stoker.KindInvalid, "s3", p.Scheme+"://"+p.Host, "an endpoint has no ? and no #")
	}
	return nil
}

// noRedirect: a redirect names another region; following it would send a
// signature that does not fit.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func (f *FS) config(ctx context.Context, l ufs.Location) (aws.Config, error) {
	opts := []func(*config.LoadOptions) error{config.WithHTTPClient(awshttp.NewBuildableClient().WithTransportOptions(tune))}
	if l.Region != "" {
		opts = append(opts, config.WithRegion(l.Region))
	}
	if l.Profile != "" {
		opts = append(opts, config.WithSharedConfigProfile(l.Profile))
	}
	if l.Anonymous {
		opts = append(opts, config.WithCredentialsProvider(aws.AnonymousCredentials{}))
	}
	cfg, err := config.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return cfg, stoker.Errorf(stoker.KindInvalid, "s3", l.Profile, "configuration: %w", err)
	}
	if cfg.Region == "" {
		cfg.Region = defaultRegion
	}
	return cfg, nil
}

// Stat implements ufs.FS.
func (f *FS) Stat(ctx context.Context, key string) (ufs.Object, error) {
	out, err := f.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &f.bucket, Key: &key})
	if err != nil {
		return ufs.Object{}, f.sdkError(ctx, "s3.stat", key, err)
	}
	return ufs.Object{Key: key, Version: ufs.Version{
		Tag: aws.ToString(out.ETag), ModTime: aws.ToTime(out.LastModified), Bytes: aws.ToInt64(out.ContentLength),
	}}, nil
}
