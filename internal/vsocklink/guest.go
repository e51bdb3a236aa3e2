package vsocklink

import (
	"net"
	"sync"
	"time"
)

// helloTimeout bounds how long a connection may wait for its hello.
const helloTimeout = time.Minute

// Listener is the guest's end of all links.
type Listener struct {
	net.Listener
	accepted chan net.Conn
	failed   chan struct{} // closed with err set
	err      error

	mu    sync.Mutex
	host  [8]byte
	links map[linkID]*link // nil: one that has ended lately
}

// Listen accepts links over the connections of l.
func Listen(l net.Listener) *Listener {
	v := &Listener{Listener: l, accepted: make(chan net.Conn), failed: make(chan struct{}), links: map[linkID]*link{}}
	go v.listen()
	return v
}

func (v *Listener) listen() {
	for {
		c, err := v.Listener.Accept()
		if err != nil {
			v.err = err
			close(v.failed)
			v.mu.Lock()
			links := v.links
			v.links = nil // and there will be none: see find
			v.mu.Unlock()
			endAll(links)
			return
		}
		go v.greet(c)
	}
}

// Accept waits for the next link. When it fails, all links end.
func (v *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-v.accepted:
		return c, nil
	case <-v.failed:
		return nil, v.err
	}
}

// greet finds or makes the link that a connection is for, and serves it.
func (v *Listener) greet(c net.Conn) {
	late := time.AfterFunc(helloTimeout, func() { _ = c.Close() })
	hi, err := readHello(c)
	late.Stop()
	if err != nil {
		_ = c.Close()
		return
	}
	l, user := v.find(hi)
	if user != nil {
		select {
		case v.accepted <- user:
		case <-v.failed: // the link has ended
		}
	}
	if err := v.answer(c, hi, l); err != nil {
		_ = c.Close()
		return
	}
	l.read(c)
}

// answer tells the host how far the link has come, and has it go on.
func (v *Listener) answer(c net.Conn, hi hello, l *link) error {
	if l == nil {
		_, _ = c.Write(encodeAnswer(false, 0))
		return errUnknown
	}
	got, ok := l.renew(hi.try)
	if !ok {
		return errOver
	}
	_, err := c.Write(encodeAnswer(true, got))
	if err == nil {
		err = l.use(c, hi.try, hi.got)
	}
	if err != nil {
		v.lost(l) // unless the host is there again
	}
	return err
}

// find returns the link of a hello, and what its user gets if it is a new one;
// nil: it is not known any more.
func (v *Listener) find(hi hello) (*link, net.Conn) {
	v.mu.Lock()
	if v.links == nil {
		v.mu.Unlock()
		return nil, nil
	}
	old := v.links
	if hi.id.host() != v.host {
		v.host, v.links = hi.id.host(), map[linkID]*link{}
	} else {
		old = nil
	}
	var user net.Conn
	l, known := v.links[hi.id]
	if !known && hi.fresh {
		l, user = newLink(hi.id, func(error) { v.lost(l) }, func() { v.forget(l) })
		v.links[hi.id] = l
	}
	v.mu.Unlock()
	endAll(old)
	return l, user
}

func endAll(links map[linkID]*link) {
	for _, l := range links {
		if l != nil {
			l.end()
		}
	}
}

func (v *Listener) forget(l *link) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.links[l.id] != l {
		return
	}
	// A hello that is late must not begin it anew.
	v.links[l.id] = nil
	time.AfterFunc(patience, func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		delete(v.links, l.id)
	})
}

// lost gives the host time to connect a link again.
func (v *Listener) lost(l *link) {
	try, _ := l.waits()
	time.AfterFunc(patience, func() {
		if now, waits := l.waits(); waits && now == try {
			l.end()
		}
	})
}
