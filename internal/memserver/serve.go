package memserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/fcvm/fcvm/internal/uffd"
)

const (
	handshakeTime = 5 * time.Second
	maxEnded      = 64                     // VMs that are remembered
	memoryLook    = 250 * time.Millisecond // between two looks at the memory file
)

// errStopped ends all VMs: the server was told to stop.
var errStopped = errors.New("the memory server was stopped")

// errVMGone ends the service of one VM: its process has ended.
var errVMGone = errors.New("the VM has ended")

// client is a VM that is served.
type client struct {
	vm    string // its id, once its supervisor has said it. Guarded by the server's mutex.
	peer  *peer
	guest *guest
	rec   *recorder // nil: this VM is not recorded
	end   context.CancelCauseFunc
}

// Serve serves until ctx ends, after which it ends all VMs that are left; or,
// unless Options.Keep says otherwise, until the last VM and the last link have
// gone, or no VM has come for as long as Options.Unused. The socket is gone
// then. It is called once.
func (s *Server) Serve(ctx context.Context) error {
	serving, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	s.mu.Lock()
	s.unused = time.AfterFunc(s.o.Unused, s.leaveUnused)
	s.mu.Unlock()
	s.wg.Go(func() { s.accept(serving) })
	s.wg.Go(func() { s.watchMemory(serving) })
	select {
	case <-ctx.Done():
	case <-s.over:
	}
	s.mu.Lock()
	s.ending = true
	s.unused.Stop()
	s.mu.Unlock()
	err := s.listener.Close()
	cancel(errStopped)
	s.wg.Wait()
	s.mu.Lock()
	rec := s.recording
	s.mu.Unlock()
	if rec != nil {
		rec.abandon()
	}
	return errors.Join(err, s.mem.close())
}

func (s *Server) accept(ctx context.Context) {
	for {
		c, err := s.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // as when there are too many open files
			s.logf("accept a connection: %v", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(10 * time.Millisecond):
			}
			continue
		}
		s.wg.Go(func() { s.connection(ctx, c) })
	}
}

// connection is one from its first byte to its end.
func (s *Server) connection(ctx context.Context, c *net.UnixConn) {
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_ = c.SetReadDeadline(time.Now().Add(handshakeTime))
	s.enter()
	defer s.leave()
	m, err := receive(c)
	if err != nil {
		s.logf("a connection was dropped: %v", err)
		return
	}
	if m.body[0] == '{' {
		m.close()
		s.control(ctx, c, m.body)
		return
	}
	p, err := peerOf(c)
	if err != nil {
		m.close()
		s.logf("a connection was dropped: %v", err)
		return
	}
	defer func() { _ = p.close() }()
	fd, l, err := adopt(m, s.mem.size)
	if fd == nil {
		s.logf("process %d was dropped: %v", p.pid, err)
		return
	}
	defer func() { _ = fd.Close() }()
	if err == nil && s.o.HugePages && l.page != hugePage {
		err = fmt.Errorf("%w: its memory is not on huge pages, as --hugepages wants it", errHandshake)
	}
	if err != nil { // there is a VM, and it would wait for ever
		s.kill(p, VMStats{PID: p.pid, Connected: time.Now()}, err)
		return
	}
	s.serveVM(ctx, p, fd, l)
}

// serveVM serves one VM until its end.
func (s *Server) serveVM(ctx context.Context, p *peer, fd *uffd.FD, l layout) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	c := &client{peer: p, end: end}
	s.begin(c, fd, l)
	done := make(chan struct{})
	go func() {
		defer close(done)
		end(cmp.Or(p.wait(ctx), errVMGone))
	}()
	err := c.guest.serve(ctx)
	end(nil)
	<-done
	if c.rec != nil {
		c.rec.abandon()
	}
	s.mu.Lock()
	delete(s.vms, c)
	v := c.stats()
	s.mu.Unlock()
	if err == nil || errors.Is(err, errVMGone) {
		s.remember(v)
	} else {
		s.kill(p, v, err)
	}
}

// stats is what was done for the VM. The caller holds the server's mutex.
func (c *client) stats() VMStats {
	v := c.guest.snapshot()
	v.VM, v.PID = c.vm, c.peer.pid
	return v
}

// begin makes the guest: one that records, one to which the working set is
// pushed, or neither.
func (s *Server) begin(c *client, fd *uffd.FD, l layout) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.guest = newGuest(fd, l, s.mem, s.o.FaultAround, s.set)
	if s.o.Prefetch && s.set == nil && s.recording == nil {
		s.recording = newRecorder(s.mem.size, s.mem.page, s.recorded, s.recordingEnded)
		c.guest.rec = s.recording
		c.rec = s.recording
	}
	c.vm = s.nameOf(c.peer.pid)
	s.vms[c] = struct{}{}
	s.served++
}

// recorded takes what was recorded, and keeps it.
func (s *Server) recorded(set bitmap) {
	n := set.count()
	if n == 0 {
		return
	}
	if s.o.WorkingSet != "" {
		if err := saveSet(s.o.WorkingSet, set, s.mem.page, s.mem.size); err != nil {
			s.logf("the working set is not kept: %v", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set = set
	s.logf("the working set has %d pages", n)
}

func (s *Server) recordingEnded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recording = nil
}

// kill ends a VM whose memory cannot be served, and says why.
func (s *Server) kill(p *peer, v VMStats, why error) {
	v.Reason = why.Error()
	s.remember(v) // first: who sees the process end may ask at once
	s.tell(p.pid, v.Reason)
	if err := p.kill(); err != nil {
		s.logf("%v", err)
	}
}

// remember keeps the last words about a VM.
func (s *Server) remember(v VMStats) {
	now := time.Now()
	v.Ended = &now
	s.mu.Lock()
	v.VM = cmp.Or(v.VM, s.nameOf(v.PID))
	s.ended = append(s.ended, v)
	s.ended = s.ended[max(0, len(s.ended)-maxEnded):]
	s.mu.Unlock()
	if v.Reason != "" {
		s.logf("%s was ended: %s", v.Name(), v.Reason)
	}
	s.logf("%v", v)
}

// watchMemory ends VMs whose memory file has changed: sooner or later they
// would be given a page that is not theirs.
func (s *Server) watchMemory(ctx context.Context) {
	t := time.NewTicker(memoryLook)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		err := s.mem.check()
		if err == nil {
			continue
		}
		s.mu.Lock()
		for c := range s.vms {
			c.end(err)
		}
		s.mu.Unlock()
	}
}

func (s *Server) enter() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.present++
}

func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.present--
	if s.present == 0 && s.served > 0 && !s.o.Keep && !s.ending {
		s.ending = true
		close(s.over)
	}
}

// leaveUnused ends a server that nobody came to.
func (s *Server) leaveUnused() {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.served > 0 || s.ending || s.o.Keep:
	case s.present > 0: // a supervisor whose VM is on its way
		s.unused.Reset(time.Second)
	default:
		s.logf("no VM has come in %s", s.o.Unused)
		s.ending = true
		close(s.over)
	}
}
