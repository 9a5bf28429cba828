package s3ufs

import (
	"strings"
	"unicode/utf8"
)

// scanListing reads what stores in fact answer: elements without attributes but
// for the root's, text without anything odd in it. encoding/xml takes ten times
// as long, which for a large dataset is most of what a listing costs. ok is false
// for all else, right or wrong: parseListing then decides.
func scanListing(text string) (a *answer, ok bool) {
	s := scanner{left: text}
	for _, head := range []string{`<?xml version="1.0" encoding="UTF-8"?>`, `<?xml version="1.0"?>`} {
		if rest, there := strings.CutPrefix(text, head); there {
			s.left = rest
			break
		}
	}
	a = &answer{Contents: make([]listed, 0, 1000)}
	root, open := s.begin(true)
	if !open {
		return nil, false
	}
	for {
		name, open := s.begin(false)
		if !open {
			return a, s.end(root) && !s.odd
		}
		switch name {
		case "Contents":
			s.contents(a)
		case "CommonPrefixes":
			var c struct{ Prefix string }
			s.members(name, func(name string) *string {
				if name == "Prefix" {
					return &c.Prefix
				}
				return nil
			})
			a.CommonPrefixes = append(a.CommonPrefixes, c)
		default:
			s.leaf(name, a.field(name))
		}
		if s.odd {
			return nil, false
		}
	}
}

func (a *answer) field(name string) *string {
	switch name {
	case "Name":
		return &a.Name
	case "IsTruncated":
		return &a.IsTruncated
	case "NextContinuationToken":
		return &a.NextContinuationToken
	case "EncodingType":
		return &a.EncodingType
	}
	return nil
}

// scanner goes through an answer. Once something is odd, it stays so.
type scanner struct {
	left  string
	odd   bool
	empty bool // the element that was begun last has ended with it
}

// begin reads the start of an element, with blanks before it; open is false if
// there is an end instead, which is left.
func (s *scanner) begin(root bool) (name string, open bool) {
	rest := strings.TrimLeft(s.left, " \t\n")
	if len(rest) < 2 || rest[0] != '<' {
		s.odd = true
		return "", false
	}
	if rest[1] == '/' {
		s.left = rest
		return "", false
	}
	tag, after, found := strings.Cut(rest[1:], ">")
	if root {
		if space := strings.IndexByte(tag, ' '); space > 0 {
			if !namespace(tag[space+1:]) {
				s.odd = true
			}
			tag = tag[:space]
		}
	}
	tag, s.empty = strings.CutSuffix(tag, "/")
	if !found || !plainName(tag) || root && s.empty {
		s.odd = true
		return "", false
	}
	s.left = after
	return tag, !s.odd
}

// namespace reports whether attributes are one xmlns alone.
func namespace(attr string) bool {
	uri, ok := strings.CutPrefix(attr, `xmlns="`)
	if !ok || !strings.HasSuffix(uri, `"`) {
		return false
	}
	return plainText(uri[:len(uri)-1]) && !strings.ContainsAny(uri[:len(uri)-1], `"&<`)
}

func plainName(name string) bool {
	for i := range len(name) {
		c := name[i] | 0x20
		if (c < 'a' || c > 'z') && (i == 0 || name[i] < '0' || name[i] > '9') {
			return false
		}
	}
	return name != ""
}

// end reads the end of an element.
func (s *scanner) end(name string) bool {
	rest := s.left
	if len(rest) < len(name)+3 || rest[:2] != "</" || rest[2:2+len(name)] != name || rest[2+len(name)] != '>' {
		s.odd = true
		return false
	}
	s.left = rest[len(name)+3:]
	return true
}

// leaf reads the rest of an element into to, which may be nil. If that is more
// than text, it must be of no use.
func (s *scanner) leaf(name string, to *string) {
	if s.empty {
		s.empty = false
		s.set(to, "")
		return
	}
	at := strings.IndexByte(s.left, '<')
	if s.odd || at < 0 {
		s.odd = true
		return
	}
	value := s.left[:at]
	if s.left = s.left[at:]; strings.HasPrefix(s.left, "</") {
		s.end(name)
		s.set(to, value)
		return
	}
	if s.odd = to != nil || strings.Trim(value, " \t\n") != ""; !s.odd {
		s.members(name, func(string) *string { return nil })
	}
}

// members reads elements of text alone, up to the end of the one that they are in.
func (s *scanner) members(name string, field func(name string) *string) {
	if s.empty {
		s.empty = false
		return
	}
	for !s.odd {
		member, open := s.begin(false)
		if !open {
			s.end(name)
			return
		}
		if s.empty {
			continue
		}
		at := strings.IndexByte(s.left, '<')
		if at < 0 {
			s.odd = true
			return
		}
		value := s.left[:at]
		s.left = s.left[at:]
		s.end(member)
		s.set(field(member), value)
	}
}

// set takes a text, once; to may be nil.
func (s *scanner) set(to *string, text string) {
	value, ok := plain(text)
	if !ok || to != nil && *to != "" {
		s.odd = true
	} else if to != nil {
		*to = value
	}
}

// contents reads one object.
func (s *scanner) contents(a *answer) {
	a.Contents = append(a.Contents, listed{})
	c := &a.Contents[len(a.Contents)-1]
	if s.empty {
		s.empty = false
		return
	}
	for !s.odd {
		name, open := s.begin(false)
		if !open {
			s.end("Contents")
			return
		}
		var to *string
		switch name {
		case "Key":
			to = &c.Key
		case "LastModified":
			to = &c.LastModified
		case "ETag":
			to = &c.ETag
		case "Size":
			to = &c.Size
		}
		s.leaf(name, to)
	}
}

// plain is what a text of XML stands for; ok is false if it holds anything but
// characters and the usual references, as the quotes around an ETag are.
func plain(text string) (value string, ok bool) {
	at := strings.IndexByte(text, '&')
	if at < 0 {
		return text, plainText(text)
	}
	if !plainText(text) {
		return "", false
	}
	var out strings.Builder
	out.Grow(len(text))
	for ; at >= 0; at = strings.IndexByte(text, '&') {
		out.WriteString(text[:at])
		name, rest, found := strings.Cut(text[at+1:], ";")
		c := reference(name)
		if !found || c == 0 {
			return "", false
		}
		out.WriteByte(c)
		text = rest
	}
	out.WriteString(text)
	return out.String(), true
}

func reference(name string) byte {
	switch name {
	case "quot", "#34":
		return '"'
	case "apos", "#39":
		return '\''
	case "amp", "#38":
		return '&'
	case "lt", "#60":
		return '<'
	case "gt", "#62":
		return '>'
	}
	return 0
}

// plainText reports whether text holds nothing that XML refuses or changes, but
// for references.
func plainText(text string) bool {
	ascii := true
	for i := range len(text) {
		switch c := text[i]; {
		case c >= utf8.RuneSelf:
			ascii = false
		case c == '>' || c < ' ' && c != '\t' && c != '\n':
			return false
		}
	}
	return ascii || utf8.ValidString(text) && !strings.ContainsAny(text, "\ufffe\uffff")
}
