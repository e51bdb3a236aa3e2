package usernet

import (
	"net"
	"sync"
)

// plug is the end of the stack's cable: the VMM is put in when there is one, later
// than the network, and another one after it has ended.
type plug struct {
	mu      sync.Mutex
	current frames        // nil: there is nobody to talk to
	changed chan struct{} // is closed when there is somebody else
	closed  bool
}

var _ frames = (*plug)(nil)

func newPlug() *plug { return &plug{changed: make(chan struct{})} }

// put puts a VMM's end in, in the place of the one before.
func (p *plug) put(f frames) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return net.ErrClosed
	}
	if p.current != nil {
		_ = p.current.Close()
	}
	p.current = f
	close(p.changed)
	p.changed = make(chan struct{})
	return nil
}

// ReadFrame waits for the next VMM when one has ended.
func (p *plug) ReadFrame(b []byte) (int, error) {
	var ended frames
	for {
		p.mu.Lock()
		f, changed, closed := p.current, p.changed, p.closed
		p.mu.Unlock()
		switch {
		case closed:
			return 0, net.ErrClosed
		case f == nil || f == ended:
			<-changed
			continue
		}
		n, err := f.ReadFrame(b)
		if err == nil {
			return n, nil
		}
		ended = f
		_ = f.Close()
	}
}

// WriteFrame loses a frame that nobody takes, as a cable would.
func (p *plug) WriteFrame(parts [][]byte) error {
	p.mu.Lock()
	f, closed := p.current, p.closed
	p.mu.Unlock()
	if closed {
		return net.ErrClosed
	}
	if f != nil {
		_ = f.WriteFrame(parts)
	}
	return nil
}

func (p *plug) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	close(p.changed)
	if p.current == nil {
		return nil
	}
	_ = p.current.Close() // it may have ended before
	return nil
}
