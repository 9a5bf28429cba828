package s3ufs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"stoker.dev"
	"stoker.dev/ufs"
)

var (
	_ ufs.Objects       = (*Objects)(nil)
	_ ufs.ObjectStreams = (*Objects)(nil)
)

// Objects is a prefix of a bucket as a store of small named objects. It needs
// a store that honours If-None-Match and If-Match on PUT (S3 since 2024,
// versitygw; not Ceph 16); CheckObjects finds out. Requests that may succeed on another try
// are tried again for about ten seconds.
type Objects struct {
	fs     *FS
	prefix string // "" or ending in a slash
}

const (
	objectTries = 7
	objectDelay = 100 * time.Millisecond // before the second try, doubled each time
)

// OpenObjects prepares access to s3://bucket[/prefix][?OPTIONS], with the
// credentials that the AWS SDK finds in the environment of the process. OPTIONS
// are endpoint=URL, region=NAME, profile=NAME and path-style, joined by &; the
// environment says the rest. It sends nothing.
func OpenObjects(ctx context.Context, uri string) (*Objects, error) {
	rest, ok := strings.CutPrefix(uri, "s3://")
	rest, query, _ := strings.Cut(rest, "?")
	bucket, prefix, _ := strings.Cut(rest, "/")
	if !ok {
		return nil, stoker.Errorf(stoker.KindInvalid, "store", uri, "want s3://bucket or s3://bucket/prefix")
	}
	at, err := locationOf(query)
	if err != nil {
		return nil, stoker.Errorf(stoker.KindInvalid, "store", "s3://"+rest, "%w", err)
	}
	f, err := Open(ctx, Options{Bucket: bucket, Location: at})
	if err != nil {
		return nil, err
	}
	if prefix = strings.Trim(prefix, "/"); prefix != "" {
		prefix += "/"
	}
	return &Objects{f, prefix}, nil
}

func locationOf(query string) (at ufs.Location, err error) {
	options, err := url.ParseQuery(query)
	if err != nil {
		return at, err
	}
	for name, values := range options {
		switch v := values[len(values)-1]; {
		case name == "endpoint":
			at.Endpoint = v
		case name == "region":
			at.Region = v
		case name == "profile":
			at.Profile = v
		case name == "path-style" && (v == "" || v == "true"):
			at.PathStyle = true
		default:
			return at, fmt.Errorf("option %s=%s: want endpoint=URL, region=NAME, profile=NAME or path-style", name, v)
		}
	}
	return at, nil
}

// CheckObjects writes, replaces and deletes one object to learn whether the
// store keeps to conditions: one that ignores them would lose updates, and on
// one that takes a right ETag for a wrong one (Ceph 16) nothing is ever replaced.
func (o *Objects) CheckObjects(ctx context.Context) error {
	name := "probe/" + stoker.NewToken()[:16]
	tag, err := o.PutIfAbsent(ctx, name, []byte("1"))
	if err != nil {
		return err
	}
	defer func() { _ = o.Delete(context.WithoutCancel(ctx), name) }() // a probe that stays does no harm
	_, absent := o.PutIfAbsent(ctx, name, []byte("2"))
	_, replaced := o.ReplaceIf(ctx, name, []byte("3"), `"0123456789abcdef0123456789abcdef"`)
	if stoker.KindOf(absent) == stoker.KindTransient || stoker.KindOf(replaced) == stoker.KindTransient {
		return errors.Join(absent, replaced)
	}
	body, now, err := o.Get(ctx, name)
	if err != nil {
		return err
	}
	if absent == nil || replaced == nil || now != tag || string(body) != "1" {
		return stoker.Errorf(stoker.KindInvalid, "store", o.fs.bucket, "this S3 server ignores If-None-Match or If-Match on PUT: updates would be lost; keep the manifest store elsewhere, or in a shared folder")
	}
	if _, err = o.ReplaceIf(ctx, name, []byte("4"), tag); stoker.KindOf(err) == stoker.KindHeld {
		return stoker.Errorf(stoker.KindInvalid, "store", o.fs.bucket, "this S3 server refuses a PUT though its If-Match holds: nothing could be updated; upgrade the server, or keep the manifest store elsewhere, or in a shared folder")
	}
	return err
}

func (o *Objects) key(name string) (string, error) {
	if err := ufs.CheckObjectName(name); err != nil {
		return "", err
	}
	return o.prefix + name, nil
}

// try calls do until it succeeds, or another try would not help. n counts the
// tries from 0.
func (o *Objects) try(ctx context.Context, op, name string, do func(n int) error) error {
	delay := objectDelay
	for n := 0; ; n++ {
		err := do(n)
		if err == nil {
			return nil
		}
		if err = o.kind(ctx, op, name, err); stoker.KindOf(err) != stoker.KindTransient || n == objectTries-1 || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(delay/2 + rand.N(delay)):
		}
		delay *= 2
	}
}

// kind gives an error its kind: conditions that do not hold are Held here.
func (o *Objects) kind(ctx context.Context, op, name string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if e := (*stoker.Error)(nil); errors.As(err, &e) {
		return err
	}
	var withStatus interface{ HTTPStatusCode() int }
	if errors.As(err, &withStatus) {
		switch withStatus.HTTPStatusCode() {
		case http.StatusPreconditionFailed:
			return stoker.Errorf(stoker.KindHeld, op, name, "exists already, or was changed by another")
		case http.StatusConflict: // another write of it is under way
			return stoker.Errorf(stoker.KindTransient, op, name, "is being written by another: %w", err)
		}
	}
	return o.fs.sdkError(ctx, op, name, err)
}

// Get implements ufs.Objects.
func (o *Objects) Get(ctx context.Context, name string) (body []byte, tag string, err error) {
	key, err := o.key(name)
	if err != nil {
		return nil, "", err
	}
	err = o.try(ctx, "store.get", name, func(int) error {
		out, err := o.fs.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &o.fs.bucket, Key: &key})
		if err != nil {
			return err
		}
		defer out.Body.Close()
		tag = aws.ToString(out.ETag)
		if body, err = io.ReadAll(out.Body); err != nil {
			return stoker.Errorf(stoker.KindTransient, "store.get", name, "%w", err)
		}
		return nil
	})
	return body, tag, err
}

// GetTo implements ufs.ObjectStreams. A body that breaks off is resumed at
// its byte, on condition that the object is the same.
func (o *Objects) GetTo(ctx context.Context, name string, w io.Writer) error {
	key, err := o.key(name)
	if err != nil {
		return err
	}
	var done int64
	var tag *string
	return o.try(ctx, "store.get", name, func(int) error {
		in := &s3.GetObjectInput{Bucket: &o.fs.bucket, Key: &key, IfMatch: tag}
		if done > 0 {
			in.Range = aws.String("bytes=" + strconv.FormatInt(done, 10) + "-")
		}
		out, err := o.fs.client.GetObject(ctx, in)
		if err != nil {
			return err
		}
		defer out.Body.Close()
		tag = out.ETag
		n, err := io.Copy(written{w}, out.Body)
		done += n
		if errors.As(err, new(writeError)) {
			return stoker.Errorf(stoker.KindInternal, "store.get", name, "%w", err)
		} else if err != nil {
			return stoker.Errorf(stoker.KindTransient, "store.get", name, "%w", err)
		}
		return nil
	})
}

// written tells errors of the writer from those of the body.
type written struct{ w io.Writer }

type writeError struct{ error }

func (e writeError) Unwrap() error { return e.error }

func (w written) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	if err != nil {
		err = writeError{err}
	}
	return n, err
}

// PutIfAbsent implements ufs.Objects.
func (o *Objects) PutIfAbsent(ctx context.Context, name string, body []byte) (string, error) {
	return o.put(ctx, "store.put", name, body, func(in *s3.PutObjectInput) { in.IfNoneMatch = aws.String("*") })
}

// ReplaceIf implements ufs.Objects.
func (o *Objects) ReplaceIf(ctx context.Context, name string, body []byte, tag string) (string, error) {
	if tag == "" { // an empty condition would be none
		if _, _, err := o.Get(ctx, name); err != nil {
			return "", err
		}
		return "", stoker.Errorf(stoker.KindHeld, "store.replace", name, "was changed by another")
	}
	return o.put(ctx, "store.replace", name, body, func(in *s3.PutObjectInput) { in.IfMatch = &tag })
}

// put writes on a condition. A condition that fails on a later try may be the
// doing of an earlier one whose answer was lost: then what is there is ours.
func (o *Objects) put(ctx context.Context, op, name string, body []byte, condition func(*s3.PutObjectInput)) (tag string, err error) {
	key, err := o.key(name)
	if err != nil {
		return "", err
	}
	tries := 0
	err = o.try(ctx, op, name, func(n int) error {
		tries = n
		in := &s3.PutObjectInput{Bucket: &o.fs.bucket, Key: &key, Body: bytes.NewReader(body)}
		condition(in)
		out, err := o.fs.client.PutObject(ctx, in)
		if err == nil {
			tag = aws.ToString(out.ETag)
		}
		return err
	})
	if tries > 0 && stoker.KindOf(err) == stoker.KindHeld {
		if there, now, gerr := o.Get(ctx, name); gerr == nil && bytes.Equal(there, body) {
			return now, nil
		}
	}
	return tag, err
}

// List implements ufs.Objects.
func (o *Objects) List(ctx context.Context, prefix string) ([]string, error) {
	names := []string{}
	in := ufs.ListOptions{Prefix: o.prefix + prefix}
	for {
		var p ufs.Page
		err := o.try(ctx, "store.list", prefix, func(int) (err error) {
			p, err = o.fs.List(ctx, in)
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, obj := range p.Objects {
			if name := strings.TrimPrefix(obj.Key, o.prefix); ufs.IsObjectName(name) {
				names = append(names, name)
			}
		}
		if p.Next == "" {
			slices.Sort(names)
			return names, nil
		}
		in.Token = p.Next
	}
}

// Delete implements ufs.Objects.
func (o *Objects) Delete(ctx context.Context, name string) error {
	key, err := o.key(name)
	if err != nil {
		return err
	}
	err = o.try(ctx, "store.delete", name, func(int) error {
		_, err := o.fs.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &o.fs.bucket, Key: &key})
		return err
	})
	if stoker.KindOf(err) == stoker.KindNotExist {
		return nil
	}
	return err
}
