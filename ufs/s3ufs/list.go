package s3ufs

import (
	"context"
	"encoding/xml"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
)

// mostPage bounds an answer: 1,000 keys of 1,024 bytes, each escaped, and what
// else stands beside them, take less than a tenth of it.
const mostPage = 64 << 20

// List implements ufs.FS: one ListObjectsV2.
func (f *FS) List(ctx context.Context, o ufs.ListOptions) (ufs.Page, error) {
	const op = "s3.list"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.base+"?"+listQuery(o), nil)
	if err != nil {
		return ufs.Page{}, stoker.Errorf(stoker.KindInvalid, op, o.Prefix, "%w", err)
	}
	signedBy, err := f.sign(ctx, req, o.Prefix)
	if err != nil {
		return ufs.Page{}, err
	}
	resp, err := f.http.Do(req)
	if err != nil {
		return ufs.Page{}, f.noAnswer(ctx, op, o.Prefix, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		err := f.answerError(op, resp, o.Prefix)
		f.expired(ctx, err, signedBy)
		return ufs.Page{}, err
	}
	var text strings.Builder
	if n := resp.ContentLength; n > 0 && n <= mostPage {
		text.Grow(int(n))
	}
	n, err := io.Copy(&text, io.LimitReader(resp.Body, mostPage+1))
	switch {
	case ctx.Err() != nil:
		return ufs.Page{}, ctx.Err()
	case err != nil:
		return ufs.Page{}, unreadable(o.Prefix, err)
	case n > mostPage:
		return ufs.Page{}, stoker.Errorf(stoker.KindCorrupt, op, o.Prefix, "the store answers with more than %d bytes", mostPage)
	}
	a, ok := scanListing(text.String())
	if !ok {
		if a, err = parseListing(text.String()); err != nil {
			return ufs.Page{}, unreadable(o.Prefix, err)
		}
	}
	if err := f.isListing(a); err != nil {
		return ufs.Page{}, err
	}
	return a.page()
}

// listQuery writes the parameters in the order that they are signed in.
func listQuery(o ufs.ListOptions) string {
	q := url.Values{"list-type": {"2"}, "encoding-type": {"url"}}
	for name, v := range map[string]string{"prefix": o.Prefix, "delimiter": o.Delimiter, "continuation-token": o.Token} {
		if v != "" {
			q.Set(name, v)
		}
	}
	if o.Token == "" && o.StartAfter != "" {
		q.Set("start-after", o.StartAfter)
	}
	if o.MaxKeys > 0 {
		q.Set("max-keys", strconv.Itoa(min(o.MaxKeys, 1000)))
	}
	return strings.ReplaceAll(q.Encode(), "+", "%20")
}

func unreadable(prefix string, err error) error {
	return stoker.Errorf(stoker.KindTransient, "s3.list", prefix, "the answer cannot be read: %w", err)
}

// isListing refuses an answer that holds no page: some other document, such as
// a proxy's.
func (f *FS) isListing(a *answer) error {
	alias := strings.Contains(f.bucket, ":") || strings.HasSuffix(f.bucket, "-s3alias") // answers with the bucket behind it
	switch {
	case a.Name == "" || a.IsTruncated != "true" && a.IsTruncated != "false":
		return stoker.Errorf(stoker.KindTransient, "s3.list", f.bucket, "the answer is no listing: is %s an S3 store?", f.base)
	case a.Name != f.bucket && !alias:
		return stoker.Errorf(stoker.KindCorrupt, "s3.list", f.bucket, "the store answers with the listing of bucket %s", a.Name)
	}
	return nil
}

// answer is a ListBucketResult as it stands in the XML.
type answer struct {
	Name, IsTruncated, NextContinuationToken, EncodingType string

	Contents       []listed
	CommonPrefixes []struct{ Prefix string }
}

type listed struct{ Key, LastModified, ETag, Size string }

// parseListing reads any XML.
func parseListing(text string) (*answer, error) {
	var a answer
	d := xml.NewDecoder(strings.NewReader(text))
	if err := d.Decode(&a); err != nil {
		return nil, err
	}
	return &a, nil
}

// page decodes an answer; keys come URL-encoded if the store knows how, since
// XML cannot carry every byte. No string of the answer is kept: all keys and tags
// share one.
func (a *answer) page() (ufs.Page, error) {
	p := ufs.Page{Objects: make([]ufs.Object, len(a.Contents))}
	var all strings.Builder
	ends := make([]int, 0, 2*len(a.Contents))
	for i := range a.Contents {
		c := &a.Contents[i]
		key, err := a.key(c.Key)
		if err != nil {
			return p, err
		}
		v := &p.Objects[i].Version
		if v.Bytes, err = strconv.ParseInt(c.Size, 10, 64); err != nil {
			return p, unreadable(key, err)
		}
		if v.Bytes < 0 {
			return p, stoker.Errorf(stoker.KindCorrupt, "s3.list", key, "the store lists %d bytes", v.Bytes)
		}
		if c.LastModified != "" {
			if v.ModTime, err = time.Parse(time.RFC3339, c.LastModified); err != nil {
				return p, unreadable(key, err)
			}
		}
		all.WriteString(key)
		ends = append(ends, all.Len())
		all.WriteString(c.ETag)
		ends = append(ends, all.Len())
	}
	text, at := all.String(), 0
	for i := range p.Objects {
		p.Objects[i].Key, p.Objects[i].Version.Tag = text[at:ends[2*i]], text[ends[2*i]:ends[2*i+1]]
		at = ends[2*i+1]
	}
	for _, c := range a.CommonPrefixes {
		prefix, err := a.key(c.Prefix)
		if err != nil {
			return p, err
		}
		p.Prefixes = append(p.Prefixes, strings.Clone(prefix))
	}
	if a.IsTruncated == "true" {
		if p.Next = strings.Clone(a.NextContinuationToken); p.Next == "" {
			return p, stoker.Errorf(stoker.KindTransient, "s3.list", "", "the page says that more follows, but not how to get it")
		}
	}
	return p, nil
}

func (a *answer) key(text string) (string, error) {
	if a.EncodingType != "url" {
		return text, nil
	}
	key, err := url.QueryUnescape(text)
	if err != nil {
		return "", stoker.Errorf(stoker.KindTransient, "s3.list", text, "encoded key: %w", err)
	}
	return key, nil
}
