package usernet

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/launch"
)

// streamFrames carries frames over a stream socket as QEMU's "socket" network
// backend does: each behind its length, 4 bytes, big-endian.
type streamFrames struct {
	conn net.Conn
	r    *bufio.Reader

	mu sync.Mutex // one frame is written at a time
}

// streamBuffer is what is read ahead, bytes: small frames. The rest of a large one
// goes straight to where it is wanted.
const streamBuffer = 4 << 10

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

// connectSocket makes a pair of stream sockets: one for QEMU, which writes
// frames behind their length, and one for the stack.
func (a *attachment) connectSocket() error {
	ours, theirs, err := socketPair()
	if err != nil {
		return fmt.Errorf("connect the VMM to its network: %w", err)
	}
	cable, socket := newPlug(), os.NewFile(uintptr(theirs), "network of the VMM")
	if err = cable.put(newStreamFrames(ours)); err == nil {
		a.net, err = newNetstack(&link{frames: cable}, &a.cfg)
	}
	if err != nil {
		_ = ours.Close()
		_ = socket.Close()
		return err
	}
	a.vmm = vmm.Net{MAC: vmm.GuestMAC, MTU: mtu, Socket: socket}
	a.launcher = &socketLauncher{cable: cable, socket: socket}
	return nil
}

// socketBuffer holds a few dozen of the largest frames; the kernel may give
// less (net.core.wmem_max).
const socketBuffer = 2 << 20

// socketPair returns the stack's end, and the descriptor of the VMM's.
func socketPair() (ours net.Conn, theirs int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, -1, os.NewSyscallError("socketpair", err)
	}
	for _, fd := range fds {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer)
	}
	f := os.NewFile(uintptr(fds[0]), "network")
	ours, err = net.FileConn(f)
	_ = f.Close() // FileConn has made its own
	if err != nil {
		_ = unix.Close(fds[1])
		return nil, -1, err
	}
	return ours, fds[1], nil
}

// socketLauncher starts VMMs anywhere. One that has ended leaves its socket in the
// middle of a frame, so the next has a new one, by the same descriptor.
type socketLauncher struct {
	cable  *plug
	socket *os.File // the VMM's

	mu   sync.Mutex
	used bool
}

// Launch implements vmm.Launcher.
func (l *socketLauncher) Launch(ctx context.Context, c vmm.Command) (vmm.Process, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.used {
		if err := l.renew(); err != nil {
			return nil, fmt.Errorf("connect the VMM to its network: %w", err)
		}
	}
	l.used = true
	return launch.Direct{}.Launch(ctx, c)
}

func (l *socketLauncher) renew() error {
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(theirs) }()
	var dup error
	raw, err := l.socket.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { dup = unix.Dup3(theirs, int(fd), unix.O_CLOEXEC) })
	}
	if err = errors.Join(err, dup); err == nil {
		err = l.cable.put(newStreamFrames(ours))
	}
	if err != nil {
		_ = ours.Close()
	}
	return err
}
