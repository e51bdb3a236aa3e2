package agent

import (
	"encoding/json"
	"errors"
	"net"
	"sync"
	"syscall"

	"github.com/fcvm/fcvm/internal/agentapi"
)

var errOver = errors.New("session is over")

// session joins a process's stdio to whoever is attached to it. It may be
// attached to before the process is started, and again after a connection was
// lost; while nobody is attached the process goes on until it has filled its
// pipes. A frame is lost only with the connection that took it.
type session struct {
	onSignal func(syscall.Signal)
	input    *input

	mu      sync.Mutex
	changed sync.Cond // att or over
	att     *attachment
	over    bool   // no more frames of the process's
	exit    []byte // payload of the last frame; nil: there is none
	io      *stdio // nil before the process is started
	rows    uint16 // what the terminal is to be, if it came before the process
	cols    uint16

	out sync.Mutex // held while a frame is written: frames take turns
}

// attachment is one connection of a session.
type attachment struct {
	net.Conn
	frames  *agentapi.FrameWriter // guarded by session.out
	unacked int                   // bytes of stdin; guarded by input.mu
}

func newSession(onSignal func(syscall.Signal)) *session {
	s := &session{onSignal: onSignal, input: newInput()}
	s.changed.L = &s.mu
	return s
}

// serve takes a connection until it ends. It takes the place of the one
// before it.
func (s *session) serve(conn net.Conn) {
	a := &attachment{Conn: conn, frames: agentapi.NewFrameWriter(conn)}
	if exit := s.attach(a); exit != nil {
		// It was sent before, but whether it arrived is not known.
		_ = agentapi.WriteFrame(conn, agentapi.FrameExit, exit)
	}
	s.receive(a)
	s.detach(a)
}

// attach returns the payload of the exit frame if the session is over.
func (s *session) attach(a *attachment) (exit []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return s.exit
	}
	if s.att != nil {
		_ = s.att.Close() // ends a write that is stuck
	}
	s.att = a
	s.changed.Broadcast()
	return nil
}

func (s *session) detach(a *attachment) {
	_ = a.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.att == a {
		s.att = nil
	}
}

// receive handles the host's frames until the connection ends. It never waits
// for the process, so that a signal is not stuck behind input.
func (s *session) receive(a *attachment) {
	r := agentapi.NewFrameReader(a)
	for {
		t, p, err := r.Next()
		if err != nil {
			return
		}
		switch t {
		case agentapi.FrameStdin:
			err = s.input.put(p, a)
		case agentapi.FrameStdinClose:
			err = s.input.put(nil, a)
		case agentapi.FrameResize:
			err = s.resize(p)
		case agentapi.FrameSignal:
			if len(p) != 1 {
				return
			}
			s.onSignal(syscall.Signal(p[0]))
		default:
			return // a guest's frame, from the host
		}
		if err != nil {
			return
		}
	}
}

func (s *session) resize(p []byte) error {
	rows, cols, err := agentapi.ParseResize(p)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows, s.cols = rows, cols
	if s.io != nil {
		s.io.resize(rows, cols)
	}
	return nil
}

// run joins the process's streams and returns when it has ended and all of
// its output was taken. wait returns when the process has ended.
func (s *session) run(io *stdio, wait func() agentapi.Exit) agentapi.Exit {
	s.mu.Lock()
	s.io = io
	if s.rows > 0 && s.cols > 0 {
		io.resize(s.rows, s.cols)
	}
	s.mu.Unlock()

	go s.feed(io)
	var pumps sync.WaitGroup
	for _, o := range io.out {
		pumps.Go(func() { o.pump(s.send) })
	}
	exit := wait()
	s.input.shut()
	for _, o := range io.out {
		o.finish()
	}
	pumps.Wait()

	s.mu.Lock()
	s.io = nil
	s.mu.Unlock()
	io.close()
	return exit
}

// feed passes input on to the process. What a process does not want is
// dropped, as it would be by a pipe that nobody reads.
func (s *session) feed(io *stdio) {
	for {
		c, ok := s.input.next()
		if !ok {
			return
		}
		if c.data == nil {
			io.closeStdin()
			continue
		}
		io.writeStdin(c.data)
		if n := s.input.taken(c); n > 0 {
			s.acknowledge(c.from, n)
		}
	}
}

// acknowledge tells the connection that input came by, and no other, that
// the process has taken it.
func (s *session) acknowledge(a *attachment, n int) {
	s.out.Lock()
	defer s.out.Unlock()
	if s.isOver() {
		return // the exit is the last frame
	}
	_ = a.frames.Write(agentapi.FrameStdinAck, agentapi.StdinAck(uint32(n))) // a lost connection shows elsewhere
}

// send writes a frame to whoever is attached, and waits for somebody if
// nobody is.
func (s *session) send(t agentapi.FrameType, p []byte) error {
	s.out.Lock()
	defer s.out.Unlock()
	for {
		a, err := s.attached()
		if err != nil {
			return err
		}
		if err := a.frames.Write(t, p); err == nil {
			return nil
		}
		s.detach(a)
	}
}

func (s *session) attached() (*attachment, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.att == nil && !s.over {
		s.changed.Wait()
	}
	if s.over {
		return nil, errOver
	}
	return s.att, nil
}

// finish sends the exit, the last frame of a session, to whoever is attached,
// and from then on to everybody who attaches.
func (s *session) finish(e agentapi.Exit) {
	b, err := json.Marshal(e)
	if err != nil {
		b = []byte(`{"code":125}`) // unreachable: an Exit can be encoded
	}
	s.out.Lock()
	defer s.out.Unlock()
	s.mu.Lock()
	a := s.att
	s.exit = b
	s.end()
	s.mu.Unlock()
	if a != nil {
		_ = a.frames.Write(agentapi.FrameExit, b) // one that is lost attaches again
	}
}

// abandon ends a session whose peer will not come back.
func (s *session) abandon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end()
}

func (s *session) isOver() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over
}

// end is called with mu held.
func (s *session) end() {
	s.over = true
	s.changed.Broadcast()
}
