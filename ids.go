package stoker

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
)

// Sizes that are part of the on-disk and wire formats (docs/adr/0001, 0002).
const (
	BlockBytes  = 256 << 10 // the most bytes of one block
	ExtentBytes = 64 << 20  // objects from this size on are cut into extents of it
	AlignBytes  = 4 << 10   // members of a shard start at multiples of it
)

// ID is a SHA-256: of a manifest's content (its id) or of a shard's members.
type ID [32]byte

// String returns id in hex.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Short returns the first 12 hex digits, for people.
func (id ID) Short() string { return hex.EncodeToString(id[:6]) }

// IsZero reports whether id was never set.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText makes ids hex in JSON.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText parses 64 hex digits.
func (id *ID) UnmarshalText(b []byte) error {
	if len(b) != 2*len(id) {
		return fmt.Errorf("id %q: want %d hex digits", b, 2*len(id))
	}
	if _, err := hex.Decode(id[:], b); err != nil {
		return fmt.Errorf("id %q: %w", b, err)
	}
	return nil
}

// ParseID parses what String printed.
func ParseID(s string) (ID, error) {
	var id ID
	return id, id.UnmarshalText([]byte(s))
}

// Incarnation is the random id of one life of a worker process. What a
// worker announces carries it, so that a dead life's announcements are void.
type Incarnation uint64

// NewIncarnation draws one; it is never 0.
func NewIncarnation() Incarnation {
	for {
		var b [8]byte
		rand.Read(b[:]) // never fails (crypto/rand)
		var n uint64
		for _, x := range b {
			n = n<<8 | uint64(x)
		}
		if n != 0 {
			return Incarnation(n)
		}
	}
}

// String returns 16 hex digits.
func (n Incarnation) String() string { return fmt.Sprintf("%016x", uint64(n)) }

// MarshalText makes incarnations hex in JSON: 64 bits do not fit its numbers.
func (n Incarnation) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText parses 16 hex digits.
func (n *Incarnation) UnmarshalText(b []byte) error {
	var v uint64
	if _, err := fmt.Sscanf(string(b), "%016x", &v); err != nil || len(b) != 16 {
		return fmt.Errorf("incarnation %q: want 16 hex digits", b)
	}
	*n = Incarnation(v)
	return nil
}

// NewToken returns 16 random bytes in hex: worker ids and job ids.
func NewToken() string {
	var b [16]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}
