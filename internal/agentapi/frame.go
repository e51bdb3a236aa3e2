package agentapi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// FrameType is the first byte of a frame.
type FrameType byte

// The frames of a process's stream. Host to guest: Stdin, StdinClose, Resize,
// Signal. Guest to host: Stdout, Stderr, StdinAck, Exit (the last frame, always).
// Clock, both ways, and Restored, to the host, are of ClockSync and RestoreRequest.
//
// The host sends at most StdinWindow bytes of stdin that the guest has not
// acknowledged. So the guest always reads what comes, and a signal is never
// stuck behind input that the process does not read.
const (
	FrameStdin      FrameType = 1
	FrameStdinClose FrameType = 2 // no payload
	FrameStdout     FrameType = 3
	FrameStderr     FrameType = 4
	FrameResize     FrameType = 5  // rows, columns: two big-endian uint16
	FrameSignal     FrameType = 6  // number: one byte
	FrameExit       FrameType = 7  // JSON of Exit
	FrameStdinAck   FrameType = 8  // bytes of stdin that the process has taken: big-endian uint32
	FrameClock      FrameType = 9  // ClockRequest, ClockAnswer
	FrameRestored   FrameType = 10 // JSON of RestoreResponse
)

// ErrFrame: the peer does not speak the protocol.
var ErrFrame = errors.New("bad frame")

const frameHeader = 5 // type, then the payload's length as big-endian uint32

// WriteFrame writes one frame with a single Write, for those who write few.
// It is not safe for concurrent use on one writer.
func WriteFrame(w io.Writer, t FrameType, payload []byte) error {
	return NewFrameWriter(w).Write(t, payload)
}

// FrameReader reads frames. The payload that Next returns is valid until the
// next call.
type FrameReader struct {
	r   io.Reader
	buf []byte
}

// NewFrameReader returns a reader of the frames in r.
func NewFrameReader(r io.Reader) *FrameReader { return &FrameReader{r: r} }

// Next reads one frame. At a clean end it returns io.EOF; in the middle of a
// frame io.ErrUnexpectedEOF; for an unknown type or a length over MaxFrame
// ErrFrame, before it reads the payload.
func (f *FrameReader) Next() (FrameType, []byte, error) {
	var h [frameHeader]byte
	if _, err := io.ReadFull(f.r, h[:]); err != nil {
		return 0, nil, err
	}
	t, n := FrameType(h[0]), binary.BigEndian.Uint32(h[1:])
	if t < FrameStdin || t > FrameRestored {
		return 0, nil, fmt.Errorf("%w: unknown type %d", ErrFrame, h[0])
	}
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("%w: length %d, the limit is %d", ErrFrame, n, MaxFrame)
	}
	if f.buf == nil {
		f.buf = make([]byte, MaxFrame)
	}
	p := f.buf[:n]
	if _, err := io.ReadFull(f.r, p); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return t, p, nil
}

// Resize encodes the payload of FrameResize.
func Resize(rows, cols uint16) []byte {
	var b [4]byte
	binary.BigEndian.PutUint16(b[:], rows)
	binary.BigEndian.PutUint16(b[2:], cols)
	return b[:]
}

// ParseResize decodes the payload of FrameResize.
func ParseResize(p []byte) (rows, cols uint16, err error) {
	if len(p) != 4 {
		return 0, 0, fmt.Errorf("%w: a resize has 4 bytes, not %d", ErrFrame, len(p))
	}
	return binary.BigEndian.Uint16(p), binary.BigEndian.Uint16(p[2:]), nil
}

// StdinAck encodes the payload of FrameStdinAck.
func StdinAck(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// ParseStdinAck decodes the payload of FrameStdinAck. More than StdinWindow
// is more than the host can have sent.
func ParseStdinAck(p []byte) (uint32, error) {
	if len(p) != 4 {
		return 0, fmt.Errorf("%w: an acknowledgement has 4 bytes, not %d", ErrFrame, len(p))
	}
	n := binary.BigEndian.Uint32(p)
	if n > StdinWindow {
		return 0, fmt.Errorf("%w: %d bytes acknowledged, the window is %d", ErrFrame, n, StdinWindow)
	}
	return n, nil
}

// FrameWriter writes frames, each with a single Write, out of one buffer that
// it uses again and again. It is not safe for concurrent use.
type FrameWriter struct {
	w   io.Writer
	buf []byte
}

// NewFrameWriter returns a writer of frames to w.
func NewFrameWriter(w io.Writer) *FrameWriter { return &FrameWriter{w: w} }

// Write writes one frame.
func (f *FrameWriter) Write(t FrameType, payload []byte) error {
	b, err := AppendFrame(f.buf[:0], t, payload)
	if err != nil {
		return err
	}
	f.buf = b
	_, err = f.w.Write(b)
	return err
}

// AppendFrame appends the encoding of one frame to b.
func AppendFrame(b []byte, t FrameType, payload []byte) ([]byte, error) {
	if len(payload) > MaxFrame {
		return nil, fmt.Errorf("%w: payload of %d bytes, the limit is %d", ErrFrame, len(payload), MaxFrame)
	}
	b = append(b, byte(t))
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...), nil
}
