package s3ufs

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
)

var _ ufs.Prober = (*FS)(nil)

// Bounds of what is fine. Stores refuse signed requests from 15 min of skew on.
const (
	skewOdd, skewBad = 3 * time.Second, 5 * time.Minute
	slowAnswer       = 250 * time.Millisecond
	probeReads       = 5
	listingBytes     = 4 << 20 // most of a listing's answer that is read
)

// probe is a look at one store. Each step adds findings, and says whether the
// next makes sense.
type probe struct {
	f        *FS
	prefix   string
	findings []ufs.Finding
	page     ufs.Page // the first
	encoded  bool     // keys came URL-encoded
}

func (p *probe) add(name string, level ufs.Level, hint, format string, args ...any) {
	p.findings = append(p.findings, ufs.Finding{Name: name, Level: level, Hint: hint, Detail: fmt.Sprintf(format, args...)})
}

// Probe implements ufs.Prober: what the store does with the requests that
// listing and reading consist of.
func (f *FS) Probe(ctx context.Context, prefix string) []ufs.Finding {
	p := &probe{f: f, prefix: prefix}
	if !p.reach(ctx) {
		return p.findings
	}
	p.credentials(ctx)
	p.paging(ctx)
	p.folders(ctx)
	p.startAfter(ctx)
	i := slices.IndexFunc(p.page.Objects, func(o ufs.Object) bool { return o.Version.Bytes > 0 })
	if i < 0 {
		p.add("read", ufs.Odd, "name a prefix with objects in its first page, to see how they are read", "there is no object with content to read")
		return p.findings
	}
	o := p.page.Objects[i]
	if p.read(ctx, o) {
		p.condition(ctx, o)
		p.latency(ctx, o)
	}
	return p.findings
}

// send sends one GET; query and key are as they stand in the URL.
func (f *FS) send(ctx context.Context, at string, header http.Header, signed bool) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, stoker.Errorf(stoker.KindInvalid, "s3.probe", "", "%w", err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if f.creds != nil && signed {
		c, err := f.creds.Retrieve(ctx)
		if err != nil {
			return nil, f.noCredentials(ctx, "", err)
		}
		req.Header.Set(payloadHeader, unsigned)
		if err := f.signer.SignHTTP(ctx, c, req, unsigned, "s3", f.region, time.Now()); err != nil {
			return nil, stoker.Errorf(stoker.KindInternal, "s3.probe", "", "sign: %w", err)
		}
	}
	resp, err := f.http.Do(req)
	if err != nil {
		return nil, f.noAnswer(ctx, "s3.probe", "", err)
	}
	return resp, nil
}

func (p *probe) listURL() string {
	q := url.Values{"list-type": {"2"}, "encoding-type": {"url"}}
	if p.prefix != "" {
		q.Set("prefix", p.prefix)
	}
	return p.f.base + "?" + strings.ReplaceAll(q.Encode(), "+", "%20")
}

// reach asks for the first page as data is asked for, so that headers and
// errors are seen as they come.
func (p *probe) reach(ctx context.Context) bool {
	const network = "see that the endpoint is right and can be reached from the controllers and workers: DNS, routes, firewalls, HTTPS_PROXY, AWS_CA_BUNDLE"
	began := time.Now()
	resp, err := p.f.send(ctx, p.listURL(), nil, true)
	took := time.Since(began)
	if err != nil {
		hint := network
		if stoker.KindOf(err) == stoker.KindDenied {
			hint = "give the daemons credentials, or name a profile that they have, or use --anonymous"
		}
		if errors.Is(err, context.DeadlineExceeded) {
			p.add("reachable", ufs.Bad, hint, "%s has not answered within %v", p.f.base, took.Round(time.Second))
			return false
		}
		p.add("reachable", ufs.Bad, hint, "%v", err)
		return false
	}
	defer resp.Body.Close()
	p.add("reachable", ufs.Fine, "", "%s answers in %s", p.f.base, milliseconds(took))
	p.clock(resp.Header.Get("Date"), began.Add(took/2), took/2)
	body, err := io.ReadAll(io.LimitReader(resp.Body, listingBytes))
	if err != nil {
		p.add("listing", ufs.Bad, network, "the answer breaks off: %v", p.f.noAnswer(ctx, "s3.probe", "", err))
		return false
	}
	if resp.StatusCode != http.StatusOK {
		p.add("listing", ufs.Bad, refusedHint(resp.StatusCode, codeOf(body)), "refused: %d %s", resp.StatusCode, codeOf(body))
		return false
	}
	var page struct {
		XMLName  xml.Name `xml:"ListBucketResult"`
		Encoding string   `xml:"EncodingType"`
	}
	if xml.Unmarshal(body, &page) != nil {
		p.add("listing", ufs.Bad, "take the endpoint of an S3 store, not of its web page or console", "the answer is no listing of S3")
		return false
	}
	p.encoded = page.Encoding == "url"
	return p.list(ctx)
}

// list takes the first page as datasets are listed.
func (p *probe) list(ctx context.Context) bool {
	began := time.Now()
	page, err := p.f.List(ctx, ufs.ListOptions{Prefix: p.prefix})
	if err != nil {
		p.add("listing", ufs.Bad, "the store does not speak ListObjectsV2 as it should", "%s", stoker.KindOf(err))
		return false
	}
	p.page = page
	keys := make([]string, len(page.Objects))
	for i, o := range page.Objects {
		keys[i] = o.Key
	}
	more := "all there are"
	if page.Next != "" {
		more = "more follow"
	}
	switch {
	case len(keys) == 0:
		p.add("listing", ufs.Odd, "see whether the prefix is spelled right", "there is nothing below it")
	case !slices.IsSorted(keys):
		p.add("listing", ufs.Odd, "tell the store's maker: ListObjectsV2 gives keys in order", "%d keys in a page, %s, in %s, but not in byte order", len(keys), more, milliseconds(time.Since(began)))
	default:
		p.add("listing", ufs.Fine, "", "%d keys in a page, %s, in %s", len(keys), more, milliseconds(time.Since(began)))
	}
	if p.encoded {
		p.add("key-encoding", ufs.Fine, "", "keys come URL-encoded: every byte is safe")
	} else {
		p.add("key-encoding", ufs.Odd, "rename keys with control bytes, if there are any: XML cannot carry them", "encoding-type=url is ignored")
	}
	return true
}

// clock compares the store's Date, which has seconds only.
func (p *probe) clock(date string, now time.Time, within time.Duration) {
	const hint = "run chronyd or ntpd on the daemons' nodes; stores refuse signed requests from 15 min on"
	at, err := http.ParseTime(date)
	if err != nil {
		p.add("clock", ufs.Odd, "a store, or the proxy before it, should send Date", "the answer has no Date to compare with")
		return
	}
	ahead := now.Sub(at.Add(500 * time.Millisecond))
	dir := "ahead of"
	if ahead < 0 {
		dir = "behind"
	}
	off := ahead.Abs() - within
	detail := fmt.Sprintf("the controller's is %v %s the store's", ahead.Abs().Round(time.Second), dir)
	switch {
	case off > skewBad:
		p.add("clock", ufs.Bad, hint, "%s", detail)
	case off > skewOdd:
		p.add("clock", ufs.Odd, hint, "%s", detail)
	default:
		p.add("clock", ufs.Fine, "", "within a second or two of the store's")
	}
}

// credentials sees whether they are needed.
func (p *probe) credentials(ctx context.Context) {
	if p.f.creds == nil {
		p.add("credentials", ufs.Fine, "", "none are sent, and none are needed to list")
		return
	}
	resp, err := p.f.send(ctx, p.listURL(), nil, false)
	if err != nil {
		p.add("credentials", ufs.Odd, "see the store's log", "signed requests are answered, one without a signature is not")
		return
	}
	_ = resp.Body.Close() // only the status counts
	if resp.StatusCode == http.StatusOK {
		p.add("credentials", ufs.Fine, "", "accepted; everybody may list without them, too (--anonymous)")
		return
	}
	p.add("credentials", ufs.Fine, "", "accepted; without them listing is refused (%d)", resp.StatusCode)
}

// paging asks for a page of one key, and for the next.
func (p *probe) paging(ctx context.Context) {
	if len(p.page.Objects) < 2 {
		return
	}
	one, err := p.f.List(ctx, ufs.ListOptions{Prefix: p.prefix, MaxKeys: 1})
	switch {
	case err != nil:
		p.add("paging", ufs.Bad, "the store must answer max-keys=1", "a page of one key: %s", stoker.KindOf(err))
		return
	case len(one.Objects) != 1:
		p.add("paging", ufs.Odd, "nothing, unless listing is slow", "max-keys is ignored: %d keys came for 1", len(one.Objects))
		return
	case one.Next == "":
		p.add("paging", ufs.Bad, "large datasets would be cut off: tell the store's maker", "a page of one key says that nothing follows")
		return
	}
	next, err := p.f.List(ctx, ufs.ListOptions{Prefix: p.prefix, MaxKeys: 1, Token: one.Next})
	if err != nil || len(next.Objects) != 1 || next.Objects[0].Key != p.page.Objects[1].Key {
		p.add("paging", ufs.Bad, "large datasets would be wrong: tell the store's maker", "the page after the first key is not that of the second")
		return
	}
	p.add("paging", ufs.Fine, "", "max-keys and continuation tokens are honoured")
}

// folders sees whether a delimiter folds what lies deeper.
func (p *probe) folders(ctx context.Context) {
	if len(p.page.Objects) == 0 {
		return
	}
	page, err := p.f.List(ctx, ufs.ListOptions{Prefix: p.prefix, Delimiter: "/"})
	if err != nil {
		p.add("delimiter", ufs.Bad, "datasets are listed by folders: the store must answer delimiter=/", "%s", stoker.KindOf(err))
		return
	}
	for _, o := range page.Objects {
		if strings.Contains(strings.TrimPrefix(o.Key, p.prefix), "/") {
			p.add("delimiter", ufs.Bad, "datasets are listed by folders: the store must honour delimiter=/", "delimiter is ignored: keys of sub-folders are listed")
			return
		}
	}
	p.add("delimiter", ufs.Fine, "", "folds %d folders beside %d objects in a page", len(page.Prefixes), len(page.Objects))
}

func (p *probe) startAfter(ctx context.Context) {
	if len(p.page.Objects) < 2 {
		return
	}
	first, second := p.page.Objects[0].Key, p.page.Objects[1].Key
	page, err := p.f.List(ctx, ufs.ListOptions{Prefix: p.prefix, StartAfter: first, MaxKeys: 1})
	if err != nil || len(page.Objects) == 0 || page.Objects[0].Key != second {
		p.add("start-after", ufs.Odd, "nothing: stoker goes on by continuation tokens", "start-after is not honoured")
		return
	}
	p.add("start-after", ufs.Fine, "", "is honoured")
}

// read reads one byte of an object, and looks at what comes with it.
func (p *probe) read(ctx context.Context, o ufs.Object) bool {
	header := http.Header{"Range": {"bytes=0-0"}, "X-Amz-Checksum-Mode": {"ENABLED"}}
	resp, err := p.f.send(ctx, p.f.base+"/"+escapeKey(o.Key), header, true)
	if err != nil {
		p.add("read", ufs.Bad, "see whether the store answers GET", "no answer: %s", stoker.KindOf(err))
		return false
	}
	defer resp.Body.Close()
	from, to, all, ok := parseContentRange(resp.Header.Get("Content-Range"))
	switch {
	case resp.StatusCode == http.StatusOK && o.Version.Bytes > 1:
		p.add("range", ufs.Bad, "data is read in parts: the store, or the proxy before it, must honour Range", "Range is ignored: the whole object comes")
		return false
	case resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent:
		p.add("read", ufs.Bad, refusedHint(resp.StatusCode, ""), "an object that is listed cannot be read: %d", resp.StatusCode)
		return false
	case resp.StatusCode == http.StatusPartialContent && (!ok || from != 0 || to != 0 || all != o.Version.Bytes):
		p.add("range", ufs.Bad, "the store must answer what was asked for", "asked for the first byte of %d, the answer is for others", o.Version.Bytes)
		return false
	}
	p.add("range", ufs.Fine, "", "a part of an object is read as asked")
	p.version(o, resp.Header)
	var sums []string
	for k := range resp.Header {
		if sum, is := strings.CutPrefix(strings.ToLower(k), "x-amz-checksum-"); is && sum != "type" && sum != "mode" {
			sums = append(sums, sum)
		}
	}
	slices.Sort(sums)
	if len(sums) == 0 {
		sums = []string{"none"}
	}
	p.add("checksums", ufs.Fine, "", "sent with a part: %s; stoker keeps its own of every block", strings.Join(sums, ", "))
	return true
}

// version compares what listing and reading call the same content.
func (p *probe) version(o ufs.Object, h http.Header) {
	got := ufs.Version{Tag: h.Get("Etag"), Bytes: o.Version.Bytes}
	if t, err := http.ParseTime(h.Get("Last-Modified")); err == nil {
		got.ModTime = t
	}
	switch {
	case !o.Version.Same(got):
		p.add("versions", ufs.Bad, "every read would be stale: does a proxy change ETag or Last-Modified?", "listing and reading tell another version of one object")
	case got.Tag == "" || o.Version.Tag == "":
		p.add("versions", ufs.Odd, "do not overwrite objects in place: a change within one second that keeps the size is not seen", "there is no ETag; size and time stand in")
	case got.ModTime.IsZero():
		p.add("versions", ufs.Fine, "", "ETag is the same in listing and reading; there is no Last-Modified")
	default:
		p.add("versions", ufs.Fine, "", "ETag and Last-Modified are the same in listing and reading")
	}
}

// condition asks for a version that does not exist.
func (p *probe) condition(ctx context.Context, o ufs.Object) {
	header := http.Header{"Range": {"bytes=0-0"}, "If-Match": {`"00000000000000000000000000000000"`}}
	resp, err := p.f.send(ctx, p.f.base+"/"+escapeKey(o.Key), header, true)
	if err != nil {
		p.add("if-match", ufs.Odd, "see the store's log", "no answer to a conditional read: %s", stoker.KindOf(err))
		return
	}
	_ = resp.Body.Close() // only the status counts
	switch resp.StatusCode {
	case http.StatusPreconditionFailed:
		p.add("if-match", ufs.Fine, "", "is honoured")
	case http.StatusOK, http.StatusPartialContent:
		p.add("if-match", ufs.Odd, "nothing: stoker compares the version of every answer, and refuses another", "is ignored: another version is sent than was asked for")
	default:
		p.add("if-match", ufs.Odd, "stoker sends If-Match with every read: see that the store knows it", "a condition that does not hold is answered by %d, not by 412", resp.StatusCode)
	}
}

// latency reads one byte some times.
func (p *probe) latency(ctx context.Context, o ufs.Object) {
	var took []time.Duration
	for range probeReads {
		began := time.Now()
		r, err := p.f.Open(ctx, o.Key, o.Version, 0, 1)
		if err == nil {
			_, err = io.Copy(io.Discard, r)
			_ = r.Close() // read to its end
		}
		if err != nil {
			p.add("latency", ufs.Odd, "try again: was the object changed?", "a read as jobs do it fails: %s", stoker.KindOf(err))
			return
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	median := took[len(took)/2]
	if median > slowAnswer {
		p.add("latency", ufs.Odd, "raise --streams of the workers: a far store needs more requests in flight", "a byte comes after %s (median of %d, up to %s)", milliseconds(median), len(took), milliseconds(took[len(took)-1]))
		return
	}
	p.add("latency", ufs.Fine, "", "a byte comes after %s (median of %d, up to %s)", milliseconds(median), len(took), milliseconds(took[len(took)-1]))
}

// code is what S3's error codes look like; nothing else of an answer is shown,
// since anything may answer at an endpoint.
var code = regexp.MustCompile(`^[A-Z][A-Za-z]{2,40}$`)

func codeOf(body []byte) string {
	var e struct {
		XMLName xml.Name `xml:"Error"`
		Code    string
	}
	if xml.Unmarshal(body, &e) != nil || !code.MatchString(e.Code) {
		return "(no code of S3)"
	}
	return e.Code
}

// refusedHint says what to do about a status.
func refusedHint(status int, code string) string {
	switch {
	case code == "RequestTimeTooSkewed":
		return "set the clock of the daemons' nodes by NTP"
	case code == "InvalidAccessKeyId", code == "SignatureDoesNotMatch":
		return "the daemons' key or secret is wrong for this store: see AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY where they run, or --profile"
	case status == http.StatusNotFound:
		return "see that the bucket is spelled right, and whether the store wants --path-style"
	case status == http.StatusForbidden, status == http.StatusUnauthorized:
		return "allow s3:ListBucket and s3:GetObject to the daemons' credentials, or use --anonymous if the bucket is public"
	case status == http.StatusMovedPermanently, status == http.StatusTemporaryRedirect, status == http.StatusBadRequest:
		return "see that --region is the bucket's, and that the endpoint wants http or https as written"
	case status == http.StatusTooManyRequests, status >= 500:
		return "try again later: the store is overloaded or out of order"
	}
	return "see whether an S3 store answers at this endpoint"
}

func milliseconds(d time.Duration) string {
	return strconv.FormatFloat(float64(d.Microseconds())/1000, 'f', 1, 64) + " ms"
}
