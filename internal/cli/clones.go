package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"

	"github.com/fcvm/fcvm/internal/supervisor"
)

// cloneOfEnv and cloneNumberEnv tell a clone command that it is one of several, or
// the one in the background: which snapshot it starts from, if that is not for it
// to find, and its number.
const (
	cloneOfEnv     = "FCVM_CLONE_OF"
	cloneNumberEnv = "FCVM_CLONE_NUMBER"
)

// clonesAtOnce bounds how many are started side by side.
const clonesAtOnce = 32

// startClones starts a supervisor for each clone, and prints in order what comes
// of each: its id, or the output of its command. One that fails does not keep
// the others from starting; the first failure is the command's. A signal does: those
// that have been started get it, and decide what it means.
func (a *app) startClones(ctx context.Context, o *cloneOptions, id string) error {
	signals := passToClones(ctx)
	defer signals.stop()
	failed := a.startEach(o, func(n int) (r cloneResult) {
		if i := signals.interrupted(); i != nil {
			return cloneResult{err: i}
		}
		env := []string{cloneOfEnv + "=" + id, cloneNumberEnv + "=" + strconv.Itoa(n)}
		if o.detach {
			r.id, r.err = startDetached(ctx, "the VM", a.again(env...))
		} else {
			r.out, r.err = a.runAgain(signals, env...)
		}
		return r
	})
	var said exitStatus
	switch i := signals.interrupted(); {
	case i == nil || failed == nil:
		return failed
	case errors.As(failed, &said): // by a clone
		return exitStatus(i.ExitCode())
	default:
		return i
	}
}

// startEach starts each clone, by its number, and waits for what comes of it.
func (a *app) startEach(o *cloneOptions, start func(n int) cloneResult) error {
	results := make([]cloneResult, o.count)
	done := sideBySide(o.count, clonesAtOnce, func(i int) { results[i] = start(i + 1) })
	defer allDone(done)
	var failed error
	count := 0
	for i := range results {
		<-done[i]
		r := &results[i]
		if err := r.print(a.sys.Stdout); err != nil {
			return err
		}
		if r.err != nil {
			count++
			if failed == nil {
				failed = r.err
			}
		}
	}
	if count > 0 && o.count > 1 {
		_, _ = fmt.Fprintf(a.sys.Stderr, "fcvm: %d of %d clones failed\n", count, o.count)
	}
	return failed
}

// cloneResult is what comes of one clone.
type cloneResult struct {
	id  string
	out *os.File // what its command has written; it has no name any more
	err error
}

func (r *cloneResult) print(w io.Writer) error {
	if r.id != "" {
		_, err := fmt.Fprintln(w, r.id)
		return err
	}
	if r.out == nil {
		return nil
	}
	defer func() { _ = r.out.Close() }()
	if _, err := r.out.Seek(0, io.SeekStart); err != nil {
		return err
	}
	_, err := io.Copy(w, r.out)
	return err
}

// runAgain runs this program again to its end, and returns what it has written
// to its stdout, in a file without a name.
func (a *app) runAgain(signals *cloneSignals, env ...string) (*os.File, error) {
	out, err := os.CreateTemp("", "fcvm-clone-*")
	if err != nil {
		return nil, fmt.Errorf("start a clone: %w", err)
	}
	_ = os.Remove(out.Name())
	cmd := a.again(env...)
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	// Not in the terminal's foreground: it would get a signal from there and from
	// here, and take it for a second one. It reads nothing from the terminal.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return out, fmt.Errorf("start a clone: %w", err)
	}
	defer signals.passTo(cmd.Process)()
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return out, exitStatus(exit.ExitCode())
	}
	return out, err
}

// cloneSignals passes on the signals that this process gets, to each clone once:
// to one that is started later, too.
type cloneSignals struct {
	stop func()

	mu      sync.Mutex
	first   *supervisor.Interrupted // that asks for an end; nil: none has
	running map[*os.Process]bool
}

// passToClones passes signals on until stop; when ctx ends, the clones are to end.
func passToClones(ctx context.Context) *cloneSignals {
	ch, stopSignals := containerSignals()
	over := make(chan struct{})
	s := &cloneSignals{running: map[*os.Process]bool{}}
	s.stop = func() {
		stopSignals()
		close(over)
	}
	go func() {
		for {
			select {
			case sig := <-ch:
				s.pass(sig)
			case <-over:
				return
			case <-ctx.Done():
				s.pass(syscall.SIGTERM)
				return
			}
		}
	}()
	return s
}

func (s *cloneSignals) pass(sig os.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, ok := sig.(syscall.Signal); ok && s.first == nil && n != syscall.SIGUSR1 && n != syscall.SIGUSR2 {
		s.first = &supervisor.Interrupted{Signal: n}
	}
	for p := range s.running {
		_ = p.Signal(sig) // one that has ended needs none
	}
}

// passTo gives a process the signals, until stop.
func (s *cloneSignals) passTo(p *os.Process) (stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running[p] = true
	if s.first != nil {
		_ = p.Signal(s.first.Signal)
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.running, p)
	}
}

// interrupted is the signal that asks for an end; nil: there was none.
func (s *cloneSignals) interrupted() *supervisor.Interrupted {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first
}
