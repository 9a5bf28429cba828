package peer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// Options tune a Client; the zero value is useful.
type Options struct {
	Token       string        // bearer token of this worker; "" = none
	DialTimeout time.Duration // 0 = 2 s: a dead peer must cost little
	Stall       time.Duration // no byte for so long ends a fetch; 0 = 20 s
}

// Client fetches blocks from peers. The zero value is not usable: use New.
type Client struct {
	http  *http.Client
	token string
	stall time.Duration
}

// New makes a client with its own connections.
func New(o Options) *Client {
	if o.DialTimeout <= 0 {
		o.DialTimeout = 2 * time.Second
	}
	if o.Stall <= 0 {
		o.Stall = 20 * time.Second
	}
	d := &net.Dialer{Timeout: o.DialTimeout}
	return &Client{
		token: o.Token,
		stall: o.Stall,
		http: &http.Client{Transport: &http.Transport{
			DialContext:         d.DialContext,
			MaxIdleConnsPerHost: 64, // one connection for each stream in flight
			IdleConnTimeout:     90 * time.Second,
			DisableCompression:  true,
		}},
	}
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

var buffers = sync.Pool{New: func() any { b := make([]byte, stoker.BlockBytes); return &b }}

// Fetch asks the worker at base for blocks [from, to) of shard n of the
// manifest and calls got for each that it has, in order; data is valid during
// the call only. Another incarnation than inc does not answer; 0 takes any. through lets that worker fill what it lacks. No blocks at all
// (from = to) only let it open the dataset. Errors: NotExist
// (it is not the incarnation, or holds nothing), Corrupt, Transient.
func (c *Client) Fetch(ctx context.Context, base string, inc stoker.Incarnation, id stoker.ID, n uint32, from, to int,
	through bool, got func(block int, data []byte) error) error {
	r := &request{base: base, inc: inc, id: id, shard: n, from: from, to: to, through: through, plain: true, got: got}
	err := c.fetch(ctx, r)
	if errors.Is(err, errPlain) { // the peer looks at its bytes then
		r.plain = false
		err = c.fetch(ctx, r)
	}
	return err
}

// request is what is asked of a peer.
type request struct {
	base           string
	inc            stoker.Incarnation
	id             stoker.ID
	shard          uint32
	from, to       int // what was handed out is behind from
	through, plain bool
	got            func(block int, data []byte) error
	conn           syscall.RawConn // that the answer comes from, if it may be long
}

func (r *request) http(ctx context.Context, token string) (*http.Request, error) {
	url := fmt.Sprintf("%s/v1/manifests/%s/shards/%d/blocks?from=%d&to=%d", r.base, r.id, r.shard, r.from, r.to)
	if r.through {
		url += "&through=1"
	}
	if IsOrdered(ctx) {
		url += "&ordered=1"
	}
	if r.plain {
		url += "&plain=1"
	}
	if r.to-r.from > 1 {
		ctx = r.seesConn(ctx)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, stoker.Errorf(stoker.KindInvalid, "peer.fetch", r.base, "%w", err)
	}
	if r.inc != 0 {
		req.Header.Set(IncarnationHeader, r.inc.String())
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return req, nil
}

func (c *Client) fetch(ctx context.Context, r *request) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(c.stall, func() { cancel(errStalled) })
	defer watch.Stop()
	req, err := r.http(ctx, c.token)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.failed(ctx, r.base, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return api.ReadError(resp)
	}
	read := readFrames
	if resp.Header.Get(plainHeader) != "" {
		read = readPlain
	}
	if err := read(resp.Body, r, func() { watch.Reset(c.stall) }); err != nil {
		return c.failed(ctx, r.base, err)
	}
	return nil
}

var errStalled = errors.New("no byte came for too long")

// failed gives an error of the transport its kind.
func (c *Client) failed(ctx context.Context, base string, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errStalled) {
		err = cause
	} else if ctx.Err() != nil {
		return ctx.Err()
	}
	var known *stoker.Error
	if errors.As(err, &known) {
		return err
	}
	return stoker.Errorf(stoker.KindTransient, "peer.fetch", base, "%w", err)
}

// readFrames hands out the blocks of a response after checking each.
func readFrames(body io.Reader, r *request, alive func()) error {
	br := readers.Get().(*bufio.Reader)
	br.Reset(body)
	defer func() { br.Reset(nil); readers.Put(br) }()
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	var head [headerBytes]byte
	for ; r.from < r.to; r.from++ {
		if _, err := io.ReadFull(br, head[:]); err != nil {
			return fmt.Errorf("broken off before block %d: %w", r.from, err)
		}
		alive()
		h := parseHeader(head[:])
		if err := h.check(r.from); err != nil {
			return err
		}
		if h.length == 0 {
			continue
		}
		data := (*b)[:h.length]
		if _, err := io.ReadFull(br, data); err != nil {
			return fmt.Errorf("broken off in block %d: %w", r.from, err)
		}
		if err := h.compare(data); err != nil {
			return err
		}
		if err := r.got(r.from, data); err != nil {
			return err
		}
	}
	return nil
}

// check refuses the header of another block, or of more than a block has.
func (h header) check(block int) error {
	if int(h.block) != block || h.length > stoker.BlockBytes {
		return stoker.Errorf(stoker.KindCorrupt, "peer.fetch", "", "frame says block %d with %d bytes, expected block %d", h.block, h.length, block)
	}
	return nil
}

func (h header) compare(data []byte) error {
	if sum := crc32.Checksum(data, castagnoli); sum != h.crc {
		return stoker.Errorf(stoker.KindCorrupt, "peer.fetch", "", "block %d has checksum %08x, announced %08x", h.block, sum, h.crc)
	}
	return nil
}
