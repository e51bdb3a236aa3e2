package vsocklink

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
)

// link is one end of a link. Whoever has it reads and writes the other end of
// app, a net.Pipe, which has deadlines, and whose Close ends a Read that waits.
type link struct {
	id   linkID
	app  net.Conn
	lost func(error) // the connection beneath is gone
	gone func()      // the link has ended

	mu      sync.Mutex
	changed sync.Cond
	conn    net.Conn // beneath; nil: there is none
	try     uint32   // the last connection's number
	over    bool     // the link has ended

	unacked []byte // sent or to be sent, and not taken by the peer
	acked   uint64 // bytes that the peer has taken
	sent    uint64 // bytes sent, at least once
	closing bool   // whoever has the link has closed it
	heard   bool   // the peer has answered once

	queue      [][]byte // received, and not taken by app
	got        uint64   // bytes received
	taken      uint64   // bytes taken by app
	told       uint64   // of these, what the peer was told of
	tellAgain  bool     // it may not have heard that
	peerClosed bool     // the peer sends no more
	replyClose bool     // and waits to hear that this is known
}

// newLink returns a link without a connection, and what its user has of it.
func newLink(id linkID, lost func(error), gone func()) (*link, net.Conn) {
	ours, theirs := net.Pipe()
	l := &link{id: id, app: theirs, lost: lost, gone: gone}
	l.changed.L = &l.mu
	go l.takeIn()
	go l.giveOut()
	return l, ours
}

// takeIn keeps what the user writes, until the peer has taken it.
func (l *link) takeIn() {
	buf := make([]byte, chunk)
	for {
		n, err := l.app.Read(buf)
		l.mu.Lock()
		for len(l.unacked)+n > window && !l.over && !l.peerClosed {
			l.changed.Wait()
		}
		if !l.peerClosed {
			l.unacked = append(l.unacked, buf[:n]...)
		}
		l.closing = l.closing || err != nil
		over := l.over
		l.changed.Broadcast()
		l.mu.Unlock()
		if over || err != nil {
			return
		}
	}
}

// giveOut passes on to the user what has come, and then the end.
func (l *link) giveOut() {
	defer func() { _ = l.app.Close() }()
	for {
		l.mu.Lock()
		for len(l.queue) == 0 && !l.over && !l.peerClosed && !l.closing {
			l.changed.Wait()
		}
		if len(l.queue) == 0 || l.closing {
			l.mu.Unlock()
			return
		}
		p := l.queue[0]
		l.mu.Unlock()
		_, err := l.app.Write(p) // one who does not read any more has closed it
		l.mu.Lock()
		if !l.closing { // else all of it counts as taken
			l.queue = l.queue[1:]
			l.taken += uint64(len(p))
		}
		l.changed.Broadcast()
		l.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// use goes on over the connection of that number, unless there is a later one. The
// peer has got that many bytes.
func (l *link) use(conn net.Conn, try uint32, peerGot uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over || l.try != try {
		return errOver
	}
	// What it has got it may not have taken: that is no acknowledgement.
	if peerGot < l.acked || peerGot > l.sent {
		return fmt.Errorf("%w: it has got %d bytes, of %d", ErrProtocol, peerGot, l.sent)
	}
	l.conn, l.tellAgain = conn, l.told > 0
	l.changed.Broadcast()
	go l.write(conn, peerGot)
	return nil
}

// write sends what there is to send, from that byte on, until the connection is
// not the link's any more.
func (l *link) write(conn net.Conn, next uint64) {
	var buf []byte
	said := false // that the link is closed
	for {
		l.mu.Lock()
		for l.conn == conn && !l.toSend(next, said) {
			l.changed.Wait()
		}
		if l.conn != conn {
			l.mu.Unlock()
			return
		}
		buf = buf[:0]
		if l.toTell() {
			buf = appendFrame(buf, frameAck, binary.BigEndian.AppendUint64(nil, l.taken))
			l.told, l.tellAgain = l.taken, false
		}
		next = max(next, l.acked) // it may have taken what an earlier connection sent
		if rest := l.unacked[next-l.acked:]; len(rest) > 0 {
			rest = rest[:min(len(rest), chunk)]
			buf = appendFrame(buf, frameData, rest)
			next += uint64(len(rest))
			l.sent = max(l.sent, next)
		} else if l.closing && !said && !l.peerClosed {
			buf, said = appendFrame(buf, frameClose, nil), true
		}
		last := l.replyClose
		if last {
			buf = appendFrame(buf, frameClosed, nil)
		}
		l.mu.Unlock()
		if _, err := conn.Write(buf); err != nil {
			_ = conn.Close() // the reader sees it
			return
		}
		if last {
			l.end()
			return
		}
	}
}

// toSend reports whether there is something to send. l.mu is held.
func (l *link) toSend(next uint64, said bool) bool {
	return l.toTell() || next < l.acked+uint64(len(l.unacked)) || l.replyClose || l.closing && !said && !l.peerClosed
}

// toTell reports whether the peer is to hear how much was taken. l.mu is held.
func (l *link) toTell() bool { return l.taken-l.told >= window/4 || l.tellAgain }

// read handles the frames of a connection until its end.
func (l *link) read(conn net.Conn) { l.follow(conn, nil) }

// follow is read, unless the connection has failed already.
func (l *link) follow(conn net.Conn, err error) {
	for r := (frameReader{r: conn}); err == nil; {
		var kind byte
		var p []byte
		if kind, p, err = r.next(); err == nil {
			err = l.handle(conn, kind, p)
		}
	}
	_ = conn.Close()
	l.mu.Lock()
	mine := l.conn == conn && !l.over
	if mine {
		l.conn = nil
		l.changed.Broadcast()
	}
	l.mu.Unlock()
	if mine {
		l.lost(err)
	}
}

// cut gives the connection beneath up; the link goes on over the next one.
func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		_ = l.conn.Close()
	}
}

// handle takes one frame.
func (l *link) handle(conn net.Conn, kind byte, p []byte) error {
	l.mu.Lock()
	if l.conn != conn {
		l.mu.Unlock()
		return net.ErrClosed
	}
	l.heard = true
	if kind == frameClosed {
		l.mu.Unlock()
		l.end()
		return io.EOF
	}
	defer l.mu.Unlock()
	defer l.changed.Broadcast()
	switch kind {
	case frameData:
		if l.got-l.taken+uint64(len(p)) > window || l.peerClosed {
			return fmt.Errorf("%w: more data than it may send", ErrProtocol)
		}
		l.got += uint64(len(p))
		if l.closing { // nobody reads it
			l.queue, l.taken = nil, l.got
			return nil
		}
		l.queue = append(l.queue, append([]byte(nil), p...))
	case frameAck:
		return l.acknowledge(p)
	case frameClose:
		l.peerClosed, l.replyClose = true, true
	default:
		return fmt.Errorf("%w: frame %d", ErrProtocol, kind)
	}
	return nil
}

func (l *link) acknowledge(p []byte) error {
	if len(p) != 8 {
		return fmt.Errorf("%w: an acknowledgement of %d bytes", ErrProtocol, len(p))
	}
	total := binary.BigEndian.Uint64(p)
	if total < l.acked || total > l.sent {
		return fmt.Errorf("%w: %d bytes acknowledged, of %d", ErrProtocol, total, l.sent)
	}
	l.unacked = l.unacked[total-l.acked:]
	l.acked = total
	return nil
}

// end is the end of a link. What has come before it the user still gets.
func (l *link) end() {
	l.mu.Lock()
	if l.over {
		l.mu.Unlock()
		return
	}
	l.over = true
	conn := l.conn
	l.conn, l.unacked = nil, nil
	l.changed.Broadcast()
	l.mu.Unlock()
	if conn != nil {
		_ = conn.Close()
	}
	l.gone()
}

// next is the host's next hello.
func (l *link) next() hello {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.try++
	return hello{l.id, l.try, l.got, !l.heard}
}

// renew makes way for the connection of that number, and returns how many bytes
// have come by now; false: it is late. What the last one still brings is dropped,
// since it will come again.
func (l *link) renew(try uint32) (got uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if try <= l.try {
		return 0, false
	}
	l.try = try
	if l.conn != nil {
		_ = l.conn.Close()
		l.conn = nil
		l.changed.Broadcast()
	}
	return l.got, true
}

// waits reports whether the link has no connection, and the number of the last.
func (l *link) waits() (try uint32, waits bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.try, l.conn == nil && !l.over
}
