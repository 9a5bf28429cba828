package s3ufs

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// pages are answers as stores give them.
func pages() map[string]string {
	const owner = `<Owner><DisplayName>o</DisplayName><ID>75aa57f0</ID></Owner>`
	aws := func(rest string) string {
		return `<?xml version="1.0" encoding="UTF-8"?>` + "\n" + `<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix></Prefix><KeyCount>2</KeyCount>` +
			`<MaxKeys>1000</MaxKeys><Delimiter/><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated><NextContinuationToken>1ueGcxLPRx1Tr/XYExHnhbYLgveDs2J/wm36Hy4vbOwM=</NextContinuationToken>` + rest + `</ListBucketResult>`
	}
	object := func(key, tag, more string) string {
		return `<Contents><Key>` + key + `</Key><LastModified>2026-10-12T17:50:30.123Z</LastModified><ETag>` + tag + `</ETag>` +
			`<ChecksumAlgorithm>CRC32C</ChecksumAlgorithm><Size>434234</Size>` + more + `<StorageClass>STANDARD</StorageClass></Contents>`
	}
	return map[string]string{
		"aws":     aws(object("my%20image.jpg", "&quot;fba9dede5f27731c9771645a39863328&quot;", "") + object("b", "&#34;x&#34;", owner) + `<CommonPrefixes><Prefix>photos/</Prefix></CommonPrefixes>`),
		"indents": "<ListBucketResult>\n  <Name>b</Name>\n  <IsTruncated>false</IsTruncated>\n  <Contents>\n    <Key>a</Key>\n    <Size>1</Size>\n  </Contents>\n</ListBucketResult>\n",
		"restore": aws(object("a", `"x"`, `<RestoreStatus><IsRestoreInProgress>false</IsRestoreInProgress></RestoreStatus>`)),
		"empty":   aws("<Contents/><CommonPrefixes/>"),
		"names":   aws(object("über/日本.jpg", "x", "")),
	}
}

// What stores answer is scanned, and found to be what encoding/xml finds.
func TestScanOfListings(t *testing.T) {
	for name, text := range pages() {
		got, ok := scanListing(text)
		want, err := parseListing(text)
		if !ok || err != nil || !same(got, want) {
			t.Errorf("%s: scanned (%v) %+v, want %+v (%v)", name, ok, got, want, err)
		}
	}
}

func same(a, b *answer) bool {
	if len(a.Contents)+len(b.Contents) == 0 {
		a.Contents, b.Contents = nil, nil
	}
	return reflect.DeepEqual(a, b)
}

// Whatever is scanned, encoding/xml reads alike.
func FuzzScanOfListings(f *testing.F) {
	for _, text := range pages() {
		f.Add(text)
	}
	for _, text := range []string{
		`<a><Name>x</Name></a>`, `<a><Name>x<b/></Name></a>`, `<a><Name>x</Name><Name>y</Name></a>`, `<a b="c"><Name>x</Name></a>`, `<a xmlns="u"></a>`,
		`<?xml version="1.0" encoding="latin1"?><a><Name>x</Name></a>`, `<a><!-- <Name>x</Name> --></a>`, `<a><![CDATA[<Name>]]></a>`, `<a><Name>&amp;&lt;&#10;</Name></a>`,
		"<a><Name>\r\n</Name></a>", "<a><Name>]]></Name></a>", `<a><Contents><Key>k</Key></Contents></b>`, `<a><Contents>text</Contents></a>`, `<a><Owner>text<ID>1</ID></Owner></a>`,
		`<?xml version="1.1"?><a></a>`, `<?xml encoding="UTF-8"?><a></a>`, `<a><Name>` + "\xff" + `</Name></a>`, `<a><CommonPrefixes><Prefix>p</Prefix>t</CommonPrefixes></a>`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, ok := scanListing(text)
		if !ok {
			return
		}
		want, err := parseListing(text)
		if err != nil || !same(got, want) {
			t.Errorf("%q: scanned %+v, parsed %+v, %v", text, got, want, err)
		}
	})
}

func BenchmarkPage(b *testing.B) {
	var all strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&all, `<Contents><Key>n%08d/n%08d_%05d.JPEG</Key><LastModified>2026-10-12T17:50:30.000Z</LastModified><ETag>&quot;fba9dede5f27731c9771645a39863328&quot;</ETag><Size>%d</Size><StorageClass>STANDARD</StorageClass></Contents>`, i/10, i/10, i, 100_000+i)
	}
	text := result("<IsTruncated>false</IsTruncated><EncodingType>url</EncodingType>" + all.String())
	for name, read := range map[string]func(string) (*answer, error){
		"scan":  func(text string) (*answer, error) { a, _ := scanListing(text); return a, nil },
		"parse": parseListing,
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				a, err := read(text)
				if err != nil {
					b.Fatal(err)
				}
				if p, err := a.page(); err != nil || len(p.Objects) != 1000 {
					b.Fatal(err)
				}
			}
		})
	}
}
