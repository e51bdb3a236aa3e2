package vsocklink

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"time"
)

// Host is the host's end of all links to one machine.
type Host struct {
	dial func(context.Context) (net.Conn, error)
	id   [8]byte
	stop context.Context
	end  context.CancelFunc

	mu     sync.Mutex
	last   uint64 // link
	links  map[*link]struct{}
	saving bool      // the machine is being saved, or stands still since
	saved  time.Time // when it went on after that
}

// NewHost returns the end of a machine whose agent dial connects to.
func NewHost(dial func(context.Context) (net.Conn, error)) *Host {
	h := &Host{dial: dial, links: map[*link]struct{}{}}
	_, _ = rand.Read(h.id[:]) // it does not fail
	h.stop, h.end = context.WithCancel(context.Background())
	return h
}

// Dial opens a link. The guest accepts the connection beneath before it returns.
func (h *Host) Dial(ctx context.Context) (net.Conn, error) {
	conn, err := h.dial(ctx)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stop.Err() != nil {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	h.last++
	var l *link
	l, user := newLink(linkID(binary.BigEndian.AppendUint64(h.id[:], h.last)),
		func(err error) { h.lost(l, err) }, func() { h.forget(l) })
	h.links[l] = struct{}{}
	go h.begin(l, conn)
	return user, nil
}

// begin is the first connection of a link. Nothing is waited for before data is
// sent: the guest cannot have got any yet.
func (h *Host) begin(l *link, conn net.Conn) {
	hi := l.next()
	_, err := conn.Write(hi.encode())
	if err == nil {
		err = l.use(conn, hi.try, 0)
	}
	if err != nil {
		_ = conn.Close()
		h.lost(l, err)
		return
	}
	_, err = readAnswer(conn)
	l.follow(conn, err)
}

func (h *Host) forget(l *link) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.links, l)
}

// Saving says that the machine is about to be saved: connections that are lost
// from now on are made again.
func (h *Host) Saving() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.saving = true
}

// Resumed says that a machine that was saved goes on. Connections that were made
// before are of no more use, whether or not it shows.
func (h *Host) Resumed() {
	h.mu.Lock()
	h.saving, h.saved = false, time.Now()
	links := make([]*link, 0, len(h.links))
	for l := range h.links {
		links = append(links, l)
	}
	h.mu.Unlock()
	for _, l := range links {
		l.cut()
	}
}

// excused reports whether a connection that is lost now may be lost because the
// machine was saved.
func (h *Host) excused() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return (h.saving || !h.saved.IsZero() && time.Since(h.saved) < patience) && h.stop.Err() == nil
}

// lost connects a link again, or ends it.
func (h *Host) lost(l *link, err error) {
	for !isFinal(err) && h.excused() {
		var conn net.Conn
		if conn, err = h.connect(l); err == nil {
			go l.read(conn)
			return
		}
		select {
		case <-h.stop.Done():
		case <-time.After(retryPause):
		}
	}
	l.end()
}

// isFinal reports whether to connect again would be in vain.
func isFinal(err error) bool {
	return errors.Is(err, ErrProtocol) || errors.Is(err, errUnknown) || errors.Is(err, errOver)
}

// connect makes a link's next connection.
func (h *Host) connect(l *link) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(h.stop, patience)
	defer cancel()
	conn, err := h.dial(ctx)
	if err != nil {
		return nil, err
	}
	// A guest that was hung up in between, or stands still, says nothing.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	hi := l.next()
	_, err = conn.Write(hi.encode())
	var got uint64
	if err == nil {
		got, err = readAnswer(conn)
	}
	if err == nil {
		err = l.use(conn, hi.try, got)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// Ended says that the machine is gone: what is lost is not made again. What has
// come of it by then can still be read.
func (h *Host) Ended() { h.end() }

// Close ends all links.
func (h *Host) Close() {
	h.end()
	h.mu.Lock()
	links := h.links
	h.links = map[*link]struct{}{}
	h.mu.Unlock()
	for l := range links {
		l.end()
	}
}
