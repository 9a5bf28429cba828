package hold

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"stoker.dev"
)

// A connection is a SOCK_SEQPACKET socket with one JSON document in each packet,
// and at most one descriptor. The first request is hello; its answer says how
// many descriptors follow, each in a packet of its own with its name.

const (
	protocol   = 1
	opHello    = "hello"
	opPut      = "put"
	opDrop     = "drop"
	maxPacket  = 4096
	socketType = "unixpacket"
)

type request struct {
	Op       string `json:"op"`
	Protocol int    `json:"protocol,omitempty"` // of hello
	Owner    string `json:"owner,omitempty"`    // of hello
	Name     string `json:"name,omitempty"`
}

type answer struct {
	Kind  stoker.Kind `json:"kind,omitempty"` // with Error
	Error string      `json:"error,omitempty"`
	Count int         `json:"count,omitempty"` // of hello
	Name  string      `json:"name,omitempty"`  // of a descriptor that follows
}

// send writes one packet.
func send(c *net.UnixConn, doc any, f *os.File) error {
	body, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	if f == nil {
		_, err = c.Write(body)
		return err
	}
	file, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := file.Control(func(fd uintptr) { _, _, err = c.WriteMsgUnix(body, unix.UnixRights(int(fd)), nil) })
	return errors.Join(cerr, err)
}

// receive reads one packet. The descriptor is the caller's, and nil if there
// is none.
func receive(c *net.UnixConn, doc any) (*os.File, error) {
	body, oob := make([]byte, maxPacket), make([]byte, unix.CmsgSpace(4*4)) // four would fit: more than one is refused
	n, oobn, flags, _, err := c.ReadMsgUnix(body, oob)                      // sets close-on-exec
	if err != nil {
		return nil, err
	}
	files, err := filesOf(oob[:oobn])
	if err == nil && (len(files) > 1 || flags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) != 0) {
		err = errors.New("more than one descriptor, or more than a packet")
	}
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err == nil {
		err = json.Unmarshal(body[:n], doc)
	}
	if err != nil {
		for _, f := range files {
			_ = f.Close()
		}
		return nil, err
	}
	if len(files) == 0 {
		return nil, nil
	}
	return files[0], nil
}

func filesOf(oob []byte) (files []*os.File, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		fds, rerr := unix.ParseUnixRights(&m)
		err = errors.Join(err, rerr)
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "held"))
		}
	}
	return files, err
}
