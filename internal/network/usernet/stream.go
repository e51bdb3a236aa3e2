package usernet

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
)

// streamFrames carries frames over a stream socket as QEMU's "socket" network
// backend does: each behind its length, 4 bytes, big-endian.
type streamFrames struct {
	conn net.Conn
	r    *bufio.Reader

	mu sync.Mutex // one frame is written at a time
}

// streamBuffer is what is read ahead: a few of the largest frames.
const streamBuffer = 256 << 10

func newStreamFrames(conn net.Conn) *streamFrames {
	return &streamFrames{conn: conn, r: bufio.NewReaderSize(conn, streamBuffer)}
}

func (s *streamFrames) ReadFrame(b []byte) (int, error) {
	var size [4]byte
	if _, err := io.ReadFull(s.r, size[:]); err != nil {
		return 0, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > uint32(len(b)) {
		// The stream cannot be trusted to be at a frame's start any more.
		return 0, fmt.Errorf("read frame: %d bytes are more than a frame has", n)
	}
	return io.ReadFull(s.r, b[:n])
}

func (s *streamFrames) WriteFrame(parts [][]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	var size [4]byte
	binary.BigEndian.PutUint32(size[:], uint32(n))
	bufs := append(net.Buffers{size[:]}, parts...)
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := bufs.WriteTo(s.conn) // writev
	return err
}

func (s *streamFrames) Close() error { return s.conn.Close() }
