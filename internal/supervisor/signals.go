package supervisor

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"
)

// killWindow is the time in which a second SIGINT or SIGTERM kills the VM.
const killWindow = 10 * time.Second

// endWindow is how long after a SIGINT or SIGTERM the end of the container is
// taken for what was asked for. One that goes on for longer has survived it. It
// is long since a container may need it to end in order: service managers wait as
// long before they kill.
const endWindow = 90 * time.Second

// Interrupted: a signal ended a run before its container ran.
type Interrupted struct{ Signal syscall.Signal }

func (i *Interrupted) Error() string { return "interrupted (" + i.Signal.String() + ")" }

// ExitCode is what a shell would say.
func (i *Interrupted) ExitCode() int { return 128 + int(i.Signal) }

// interruption returns the signal that ended ctx, or nil.
func interruption(ctx context.Context) *Interrupted {
	var i *Interrupted
	if errors.As(context.Cause(ctx), &i) {
		return i
	}
	return nil
}

// signals gives the signals that fcvm gets to whom they concern: until the
// container runs they end the start, then they are the container's, and the
// second of two that ask for an end kills the VM.
type signals struct {
	done chan struct{}
	end  context.CancelCauseFunc

	mu      sync.Mutex
	ended   bool          // the start was ended
	forward func(sig int) // nil: nothing runs yet
	kill    func()
	last    time.Time // when an end of the container was last asked for
	asked   bool      // the container that was there last has ended because of it

	dead *latch // the VM was ended from outside of it; its error says why
}

var (
	errSecondSignal = errors.New("killed by a second signal")
	errUnyielding   = errors.New("killed: its guest did not end the container")
)

func watchSignals(ctx context.Context, ch <-chan os.Signal) (context.Context, *signals) {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &signals{done: make(chan struct{}), end: cancel, dead: newLatch()}
	go func() {
		for {
			select {
			case sig := <-ch:
				if n, ok := sig.(syscall.Signal); ok {
					s.handle(n, time.Now())
				}
			case <-s.done:
				return
			}
		}
	}()
	return ctx, s
}

func (s *signals) handle(sig syscall.Signal, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.forward == nil {
		if sig != syscall.SIGUSR1 && sig != syscall.SIGUSR2 {
			s.ended = true
			s.end(&Interrupted{Signal: sig})
		}
		return
	}
	asksEnd := sig == syscall.SIGINT || sig == syscall.SIGTERM
	if asksEnd && !s.last.IsZero() && now.Sub(s.last) < killWindow {
		s.dead.set(errSecondSignal)
		go s.kill()
		return
	}
	if asksEnd {
		s.last = now
	}
	// Not here: a guest that does not read must not keep the second signal
	// from coming through.
	go s.forward(int(sig))
}

// setForward says that the container gets the signals from now on; false: one
// has ended the start before. With nil, since the container has ended, they end
// the start again.
func (s *signals) setForward(f func(sig int)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.forward = f
	s.asked = !s.last.IsZero() && time.Since(s.last) < endWindow
	s.last = time.Time{}
	return true
}

// setKill says how to end the VM.
func (s *signals) setKill(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kill = f
}

// interrupt ends a start, as SIGTERM would. It reports false when the
// container runs.
func (s *signals) interrupt() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.forward != nil {
		return false
	}
	s.ended = true
	s.end(&Interrupted{Signal: syscall.SIGTERM})
	return true
}

// send gives the container a signal that somebody asked for by name: unlike
// one of this process, a second one does not kill the VM.
func (s *signals) send(sig int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.forward != nil {
		go s.forward(sig)
	}
}

// doom says that the VM is ended, since its guest does not do what it is asked for.
func (s *signals) doom() { s.dead.set(errUnyielding) }

// killNow ends the VM.
func (s *signals) killNow() {
	s.doom()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kill != nil {
		go s.kill()
	}
}

// endAsked reports whether a signal has asked for the end of the container that
// has ended.
func (s *signals) endAsked() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// killed says why the VM was ended from outside of it; nil: it was not.
func (s *signals) killed() error { return s.dead.now() }

func (s *signals) stop() {
	close(s.done)
	s.end(nil)
}
