package agent

import (
	"encoding/json"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// aLongTimeAgo is a deadline that ends every pending call.
var aLongTimeAgo = time.Unix(1, 0)

// inputQueue is how many frames of input wait for a process that does not
// read, before signals and resizes wait behind them.
const inputQueue = 16

// session joins a process's stdio to whoever is attached to it. Without
// anybody attached the process goes on until it fills its pipes; what it
// wrote is sent to the next one who attaches. A frame is lost only with the
// connection that took it.
type session struct {
	mu       sync.Mutex
	attached sync.Cond
	conn     net.Conn
	over     bool // nothing more will be sent
	io       *stdio
	onSignal func(syscall.Signal)
	pending  []func(*stdio) // input that came before the process was started
	input    chan func(*stdio)
}

func newSession(onSignal func(syscall.Signal)) *session {
	s := &session{onSignal: onSignal, input: make(chan func(*stdio), inputQueue)}
	s.attached.L = &s.mu
	return s
}

// serve takes a connection until it ends. A second one takes the place of the
// first.
func (s *session) serve(conn net.Conn) {
	s.mu.Lock()
	if s.conn != nil {
		_ = s.conn.Close()
	}
	s.conn = conn
	s.attached.Broadcast()
	s.mu.Unlock()
	s.receive(conn)
	s.detach(conn)
}

func (s *session) detach(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = conn.Close()
	if s.conn == conn {
		s.conn = nil
	}
}

// receive handles the host's frames until the connection ends.
func (s *session) receive(conn net.Conn) {
	r := agentapi.NewFrameReader(conn)
	for {
		t, p, err := r.Next()
		if err != nil {
			return
		}
		switch t {
		case agentapi.FrameStdin:
			data := append([]byte(nil), p...)
			s.input <- func(io *stdio) {
				if io.stdin != nil {
					_, _ = io.stdin.Write(data) // a process that does not read is no error
				}
			}
		case agentapi.FrameStdinClose:
			s.input <- (*stdio).closeStdin
		case agentapi.FrameResize:
			rows, cols, err := agentapi.ParseResize(p)
			if err != nil {
				return
			}
			s.input <- func(io *stdio) { io.resize(rows, cols) }
		case agentapi.FrameSignal:
			if len(p) != 1 {
				return
			}
			s.onSignal(syscall.Signal(p[0]))
		default:
			return // a guest's frame, from the host
		}
	}
}

// run joins the process's streams and returns when it has ended and all of
// its output was taken. wait returns when the process has ended.
func (s *session) run(io *stdio, wait func() agentapi.Exit) agentapi.Exit {
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case f := <-s.input:
				f(io)
			case <-done:
				return
			}
		}
	}()
	var pumps sync.WaitGroup
	for _, o := range io.out {
		pumps.Go(func() { o.pump(s.send) })
	}
	exit := wait()
	for _, o := range io.out {
		o.finish()
	}
	pumps.Wait()
	io.close()
	return exit
}

// finish sends the exit, the last frame of a session.
func (s *session) finish(e agentapi.Exit) {
	b, err := json.Marshal(e)
	if err == nil {
		_ = s.send(agentapi.FrameExit, b)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	s.attached.Broadcast()
}

var errOver = errors.New("session is over")

// send writes a frame to whoever is attached, and waits for somebody if
// nobody is.
func (s *session) send(t agentapi.FrameType, p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		for s.conn == nil && !s.over {
			s.attached.Wait()
		}
		if s.over {
			return errOver
		}
		conn := s.conn
		// The lock is held: frames of the two streams take turns.
		if err := agentapi.WriteFrame(conn, t, p); err == nil {
			return nil
		}
		_ = conn.Close()
		if s.conn == conn {
			s.conn = nil
		}
	}
}

// abandon ends a session whose peer will not come back.
func (s *session) abandon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	s.attached.Broadcast()
}
