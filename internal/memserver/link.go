package memserver

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"sync"
	"time"
)

// maxLine bounds what one side of a link, or who asks for statistics, says at
// once, bytes; answers with statistics are longer.
const (
	maxLine   = 4096
	maxAnswer = 4 << 20
	tellTime  = 200 * time.Millisecond // until a supervisor that does not read is given up
)

// Requests, as the first line says.
const (
	requestStats = "stats"
	requestLink  = "link"
)

// request is a line from a client of this package's.
type request struct {
	Request string `json:"request,omitempty"` // of the first line
	VM      string `json:"vm,omitempty"`      // link: the VM's id
	PID     int    `json:"pid,omitempty"`     // link, later: of its VMM
	Ready   bool   `json:"ready,omitempty"`   // link, later: the VM is ready
}

// answer is a line from the server.
type answer struct {
	Linked bool   `json:"linked,omitempty"`
	Ended  string `json:"ended,omitempty"` // why the server has ended the VM
	Error  string `json:"error,omitempty"`
	Stats  *Stats `json:"stats,omitempty"`
}

// link is a supervisor that watches.
type link struct {
	vm     string
	opened time.Time
	pid    int // of the VMM; 0: not yet known. Guarded by the server's mutex.

	mu   sync.Mutex // one line at a time
	conn *net.UnixConn
}

func (l *link) send(a answer) error { return l.sendWithin(tellTime, a) }

func (l *link) sendWithin(limit time.Duration, a answer) error {
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.conn.SetWriteDeadline(time.Now().Add(limit))
	_, err = l.conn.Write(append(b, '\n'))
	return err
}

// control answers a client of this package's, who has said first already.
func (s *Server) control(ctx context.Context, c *net.UnixConn, first []byte) {
	lines := bufio.NewScanner(io.MultiReader(bytes.NewReader(first), c))
	lines.Buffer(make([]byte, maxLine), maxLine)
	l := &link{conn: c, opened: time.Now()}
	var q request
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &q) != nil {
		_ = l.send(answer{Error: "it is no request"})
		return
	}
	switch q.Request {
	case requestStats:
		st := s.Stats()
		_ = l.sendWithin(handshakeTime, answer{Stats: &st}) // more than the socket holds
	case requestLink:
		l.vm = q.VM
		s.serveLink(ctx, l, lines)
	default:
		_ = l.send(answer{Error: "it is not known here: is the server of another version?"})
	}
}

// serveLink listens to a supervisor until it goes, or the server does.
func (s *Server) serveLink(ctx context.Context, l *link, lines *bufio.Scanner) {
	s.mu.Lock()
	s.links[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.links, l)
		s.mu.Unlock()
	}()
	_ = l.conn.SetReadDeadline(time.Time{})
	if ctx.Err() != nil || l.send(answer{Linked: true}) != nil { // the deadline that ends it is gone
		return
	}
	for lines.Scan() {
		var q request
		if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
			return
		}
		if q.PID > 0 {
			s.attach(l, q.PID)
		}
		if q.Ready {
			s.ready(l)
		}
	}
	if ctx.Err() != nil {
		_ = l.send(answer{Ended: errStopped.Error()})
	}
}

// attach notes which VM is the supervisor's. It may have ended already, but
// not before the supervisor was there: that was another with the same number.
func (s *Server) attach(l *link, pid int) {
	s.mu.Lock()
	l.pid = pid
	reason := ""
	for _, v := range s.ended {
		if v.PID == pid && v.Ended.After(l.opened) {
			reason = v.Reason
		}
	}
	for c := range s.vms {
		if c.peer.pid == pid {
			c.vm, reason = l.vm, ""
		}
	}
	s.mu.Unlock()
	if reason != "" {
		_ = l.send(answer{Ended: reason})
	}
}

// ready tells the recording, if it is of that VM.
func (s *Server) ready(l *link) {
	s.mu.Lock()
	var rec *recorder
	for c := range s.vms {
		if c.peer.pid == l.pid && c.rec == s.recording {
			rec = c.rec
		}
	}
	s.mu.Unlock()
	if rec != nil {
		rec.setReady()
	}
}

// tell says to a VM's supervisor why it was ended.
func (s *Server) tell(pid int, reason string) {
	s.mu.Lock()
	var to []*link
	for l := range s.links {
		if l.pid == pid {
			to = append(to, l)
		}
	}
	s.mu.Unlock()
	for _, l := range to {
		if err := l.send(answer{Ended: reason}); err != nil {
			s.logf("tell the supervisor of %s: %v", l.vm, err)
		}
	}
}

// nameOf is the id that the supervisor of a VMM has said, if one has. The
// caller holds the mutex.
func (s *Server) nameOf(pid int) string {
	for l := range s.links {
		if l.pid == pid {
			return l.vm
		}
	}
	return ""
}
