package hostport

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// MaxDatagram is the largest payload of UDP over IPv4, bytes.
const MaxDatagram = 65507

// HalfConn is one end of a TCP connection, as relays need it.
type HalfConn interface {
	net.Conn
	CloseWrite() error
	// Abort closes the connection with a reset.
	Abort()
	// CopyBuffer is how much a relay may hold for each direction, bytes: the less of
	// both ends' counts.
	CopyBuffer() int
}

// HostConn is a TCP socket of the host.
type HostConn struct{ *net.TCPConn }

// Abort implements HalfConn.
func (c HostConn) Abort() {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// CopyBuffer implements HalfConn.
func (HostConn) CopyBuffer() int { return MaxCopyBuffer }

// MaxCopyBuffer is as much as is of use to a relay, bytes: two segments of the
// largest MTU.
const MaxCopyBuffer = 128 << 10

// copyBuffers are shared by all connections of the process that use the largest.
var copyBuffers = sync.Pool{New: func() any { b := make([]byte, MaxCopyBuffer); return &b }}

// RelayTCP copies both ways until both ends have said all, or one fails. The
// end of one direction is passed on as such; a failure, and the end of ctx, as
// a reset.
func RelayTCP(ctx context.Context, a, b HalfConn) {
	stop := context.AfterFunc(ctx, func() { a.Abort(); b.Abort() })
	defer stop()
	back := make(chan error, 1)
	go func() { back <- copyHalf(a, b) }()
	err := copyHalf(b, a)
	if err := errors.Join(err, <-back); err != nil {
		return // both are aborted
	}
	_ = b.Close()
	_ = a.Close() // last: a guest may take its time
}

// copyHalf copies from src to dst. When that fails, both are done for.
func copyHalf(dst, src HalfConn) error {
	err := copyStream(dst, src)
	if err == nil {
		err = dst.CloseWrite()
	}
	if err != nil {
		dst.Abort()
		src.Abort()
	}
	return err
}

func copyStream(dst, src HalfConn) error {
	to, isHost := dst.(HostConn)
	from, isToo := src.(HostConn)
	if isHost && isToo { // the kernel does it: splice(2)
		_, err := io.Copy(to.TCPConn, from.TCPConn)
		return err
	}
	var buf []byte
	if size := min(dst.CopyBuffer(), src.CopyBuffer()); size < MaxCopyBuffer {
		buf = make([]byte, size)
	} else {
		shared := copyBuffers.Get().(*[]byte)
		defer copyBuffers.Put(shared)
		buf = *shared
	}
	// Hidden behind plain interfaces: *net.TCPConn's own ReadFrom would take
	// a smaller buffer.
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf)
	return err
}

// RelayUDP passes datagrams both ways between two connected sockets, until
// none has come for as long as idle, or one of them is closed, and closes both.
func RelayUDP(ctx context.Context, a, b net.Conn, flow *Flow, idle time.Duration) {
	closeBoth := func() { _ = a.Close(); _ = b.Close() }
	stop := context.AfterFunc(ctx, closeBoth)
	defer stop()
	defer closeBoth()
	var back sync.WaitGroup
	back.Go(func() { defer closeBoth(); passDatagrams(a, b, flow, idle) })
	passDatagrams(b, a, flow, idle)
	closeBoth()
	back.Wait()
}

// passDatagrams returns when src is closed, or when the flow has been idle for so
// long.
func passDatagrams(dst io.Writer, src net.Conn, flow *Flow, idle time.Duration) {
	buf := make([]byte, MaxDatagram)
	for {
		_ = src.SetReadDeadline(flow.expires(idle))
		size, err := src.Read(buf)
		switch {
		case err == nil:
			flow.touch()
			_, _ = dst.Write(buf[:size]) // a datagram may get lost
		case isTimeout(err):
			if !time.Now().Before(flow.expires(idle)) {
				return
			}
		case !isRefusal(err):
			return
		}
	}
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}

// isRefusal recognizes the echo of a datagram that nobody received: the next
// one may be.
func isRefusal(err error) bool {
	var op *net.OpError
	return errors.Is(err, syscall.ECONNREFUSED) ||
		errors.As(err, &op) && op.Err != nil && op.Err.Error() == refusedText
}

// refusedText is what gVisor's stack says in place of ECONNREFUSED.
const refusedText = "connection was refused"

// Acquire takes one of a number of slots, if one is free.
func Acquire(slots chan struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	default:
		return false
	}
}

// Release gives a slot back.
func Release(slots chan struct{}) { <-slots }
