// Package vsocklink carries connections to the agent over vsock, so that they
// outlive what happens to vsock: a VMM that saves its machine hangs up all of its
// connections, in the machine that goes on as well as in those that are started
// from what was saved.
//
// A link is what both ends see as one connection. Each end keeps what it has sent
// until the other has taken it. When the connection beneath is lost because the
// machine was saved, the host makes a new one, both say how far they have come,
// and send the rest again. A guest that hears from another host was started from
// a snapshot: the links of the first host end.
//
// The protocol, with integers in big-endian order. The host begins each
// connection with the hello: the host's id (8 bytes), the link's (8 bytes), the
// number of the connection among the link's (4 bytes), how many bytes of data it has
// got on the link (8 bytes), and whether the guest need not know the link (1 byte).
// The guest answers with whether it knows it now
// (1 byte), and how many bytes it has got (8 bytes). From there on both send
// frames: a type (1 byte), a length (4 bytes), the payload.
package vsocklink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// ErrProtocol: the peer says what no end of a link says.
var ErrProtocol = errors.New("the guest does not speak the link's protocol")

// errUnknown: the guest has given the link up.
var errUnknown = errors.New("the guest does not know the connection any more")

// errOver: the link has ended, or goes on over another connection.
var errOver = errors.New("the connection is of no more use")

const (
	// window is how much an end sends that the other has not taken, bytes: what
	// each of them keeps at most, for each direction.
	window = 256 << 10

	// chunk is what a frame has at most, bytes.
	chunk = 64 << 10

	// patience is how long a link outlives its connection. It is long, since a
	// guest that has been saved may be busy, or emulated.
	patience = time.Minute

	// retryPause is how long the host waits between tries to connect again.
	retryPause = 5 * time.Millisecond
)

const (
	helloSize  = 29
	answerSize = 9
	headSize   = 5
)

// The frames.
const (
	frameData   = 1
	frameAck    = 2 // how many bytes of data were taken, in all: uint64
	frameClose  = 3 // no more data; and what comes is not read any more
	frameClosed = 4 // the answer to frameClose; the last frame
)

// linkID names a link: first the host, then one of its links.
type linkID [16]byte

func (id linkID) host() [8]byte { return [8]byte(id[:8]) }

// hello is how the host begins a connection.
type hello struct {
	id    linkID
	try   uint32 // one that comes after a later one is late
	got   uint64
	fresh bool // nothing has come back on the link yet
}

func (h hello) encode() []byte {
	b := append(make([]byte, 0, helloSize), h.id[:]...)
	b = binary.BigEndian.AppendUint32(b, h.try)
	b = binary.BigEndian.AppendUint64(b, h.got)
	if h.fresh {
		return append(b, 1)
	}
	return append(b, 0)
}

func readHello(r io.Reader) (hello, error) {
	var b [helloSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return hello{}, err
	}
	return hello{linkID(b[:16]), binary.BigEndian.Uint32(b[16:]), binary.BigEndian.Uint64(b[20:]), b[28] == 1}, nil
}

func encodeAnswer(known bool, got uint64) []byte {
	b := make([]byte, 1, answerSize)
	if known {
		b[0] = 1
	}
	return binary.BigEndian.AppendUint64(b, got)
}

// readAnswer returns how many bytes the guest has got. The error is errUnknown
// when it does not know the link.
func readAnswer(r io.Reader) (got uint64, err error) {
	var b [answerSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, err
	}
	switch b[0] {
	case 0:
		return 0, errUnknown
	case 1:
		return binary.BigEndian.Uint64(b[1:]), nil
	}
	return 0, fmt.Errorf("%w: answer %d", ErrProtocol, b[0])
}

func appendFrame(b []byte, kind byte, payload []byte) []byte {
	b = append(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

// frameReader reads frames. The payload is valid until the next one.
type frameReader struct {
	r   io.Reader
	buf []byte
}

func (f *frameReader) next() (kind byte, payload []byte, err error) {
	var h [headSize]byte
	if _, err := io.ReadFull(f.r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(h[1:])
	if n > chunk {
		return 0, nil, fmt.Errorf("%w: a frame of %d bytes", ErrProtocol, n)
	}
	if f.buf == nil {
		f.buf = make([]byte, chunk)
	}
	if _, err := io.ReadFull(f.r, f.buf[:n]); err != nil {
		return 0, nil, err
	}
	return h[0], f.buf[:n], nil
}
