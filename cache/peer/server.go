package peer

import (
	"bufio"
	"context"
	"hash/crc32"
	"net/http"
	"strconv"
	"sync"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// maxRun bounds one request: 128 MiB of blocks, the largest shard there is.
const maxRun = 32768

// slowest is how long a peer may take for a block: after twice the time in
// which an asker gives up.
const slowest = 40 * time.Second

// Run is a run of blocks that is being served.
type Run interface {
	// Block returns the bytes of a block, verified, in buf (of BlockBytes) or
	// its own memory; nil if this worker does not have it. The bytes are used
	// before the next call.
	Block(ctx context.Context, block int, buf []byte) ([]byte, error)
	// Plain returns the run as it lies on the disk; nil if it does not all lie
	// there, or not closely enough.
	Plain() *Plain
	// Close ends the run, and with it its Plain.
	Close() error
}

// Blocks is where the server reads.
type Blocks interface {
	// OpenRun begins to serve blocks of shard n of a manifest. through says
	// that missing ones are to be filled, because the asker takes this worker
	// for their owner.
	OpenRun(ctx context.Context, id stoker.ID, n uint32, from, to int, through bool) (Run, error)
}

// Buffered ends of the connection are used again: an answer of a small object
// would else cost 64 KiB of garbage on both sides.
var (
	writers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, 64<<10) }}
	readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 64<<10) }}
)

// Handler serves GET /v1/manifests/{manifest}/shards/{shard}/blocks for the
// worker with the given incarnation.
func Handler(inc stoker.Incarnation, blocks Blocks) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := serve(w, r, inc, blocks); err != nil {
			api.WriteError(w, err)
		}
	})
}

// serve answers one request. An error returned has not been answered yet.
func serve(w http.ResponseWriter, r *http.Request, inc stoker.Incarnation, blocks Blocks) error {
	if asked := r.Header.Get(IncarnationHeader); asked != "" && asked != inc.String() {
		return stoker.Errorf(stoker.KindNotExist, "peer.serve", asked, "that worker is gone; here is %s", inc)
	}
	id, err := stoker.ParseID(r.PathValue("manifest"))
	if err != nil {
		return stoker.Errorf(stoker.KindInvalid, "peer.serve", "", "%w", err)
	}
	n, err := strconv.ParseUint(r.PathValue("shard"), 10, 32)
	if err != nil {
		return stoker.Errorf(stoker.KindInvalid, "peer.serve", id.Short(), "shard: %w", err)
	}
	q := r.URL.Query()
	from, err1 := strconv.Atoi(q.Get("from"))
	to, err2 := strconv.Atoi(q.Get("to"))
	if err1 != nil || err2 != nil || from < 0 || to < from || to-from > maxRun {
		return stoker.Errorf(stoker.KindInvalid, "peer.serve", id.Short(), "blocks from %q to %q: want 0 <= from <= to, at most %d", q.Get("from"), q.Get("to"), maxRun)
	}
	ctx := r.Context()
	if q.Get("ordered") == "1" {
		ctx = Ordered(ctx)
	}
	run, err := blocks.OpenRun(ctx, id, uint32(n), from, to, q.Get("through") == "1")
	if err != nil {
		return err
	}
	defer func() { _ = run.Close() }()
	w.Header().Set("Content-Type", "application/octet-stream")
	conn := http.NewResponseController(w)
	defer func() { _ = conn.SetWriteDeadline(time.Time{}) }() // the connection serves others
	if q.Get("plain") == "1" {
		if p := run.Plain(); p != nil {
			sendPlain(w, conn, p, from)
			return nil
		}
	}
	bw := writers.Get().(*bufio.Writer)
	bw.Reset(w)
	defer func() { bw.Reset(nil); writers.Put(bw) }()
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	for block := from; block < to; block++ {
		_ = conn.SetWriteDeadline(time.Now().Add(slowest)) // an asker that hangs must not keep what the answer holds
		if err := sendBlock(r.Context(), bw, run, block, *b); err != nil {
			return nil // the answer has begun: breaking off tells the asker
		}
	}
	_ = bw.Flush() // as above
	return nil
}

func sendBlock(ctx context.Context, bw *bufio.Writer, run Run, block int, buf []byte) error {
	data, err := run.Block(ctx, block, buf)
	if err != nil {
		if stoker.KindOf(err) == stoker.KindInternal || ctx.Err() != nil {
			return err
		}
		data = nil // this object cannot be had here; the others can
	}
	var head [headerBytes]byte
	header{uint32(block), uint32(len(data)), crc32.Checksum(data, castagnoli)}.put(head[:])
	if _, err := bw.Write(head[:]); err != nil {
		return err
	}
	_, err = bw.Write(data)
	return err
}
