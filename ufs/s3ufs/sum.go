package s3ufs

import (
	"crypto/sha1" //nolint:gosec // S3 has it as a checksum
	"crypto/sha256"
	"encoding/base64"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"net/http"
	"strings"
	"sync"
)

// wantSums asks for the checksum that was stored with the object. It is asked
// with reads of whole objects alone: there it costs a header, while for a range
// no store has one.
const wantSums = "X-Amz-Checksum-Mode"

// nvme is the table of CRC-64/NVME, reflected.
var nvme = sync.OnceValue(func() *crc64.Table { return crc64.MakeTable(0x9a6c9329ac4bc9b5) })

// sums are the checksums of S3, the cheapest first. The ETag is none: it is an
// MD5 only for some uploads, and nothing says for which.
var sums = []struct {
	header string
	fresh  func() hash.Hash
}{
	{"X-Amz-Checksum-Crc32c", func() hash.Hash { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) }},
	{"X-Amz-Checksum-Crc32", func() hash.Hash { return crc32.NewIEEE() }},
	{"X-Amz-Checksum-Crc64nvme", func() hash.Hash { return crc64.New(nvme()) }},
	{"X-Amz-Checksum-Sha1", sha1.New},
	{"X-Amz-Checksum-Sha256", sha256.New},
}

// sumOf finds a checksum of the whole object in an answer. Those of multipart
// uploads that are made of the parts' checksums say nothing that can be
// compared.
func sumOf(h http.Header) (fresh func() hash.Hash, want []byte) {
	if strings.EqualFold(h.Get("X-Amz-Checksum-Type"), "COMPOSITE") {
		return nil, nil
	}
	for _, s := range sums {
		text := h.Get(s.header)
		if text == "" {
			continue
		}
		want, err := base64.StdEncoding.DecodeString(text)
		if err == nil && len(want) == s.fresh().Size() {
			return s.fresh, want
		}
	}
	return nil, nil
}

// summed is the body of a whole object whose checksum came along.
type summed struct {
	*body
	fresh func() hash.Hash
	want  []byte
}

// Sum implements ufs.Summed.
func (s summed) Sum() (hash.Hash, []byte) { return s.fresh(), s.want }
