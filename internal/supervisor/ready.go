package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/agentclient"
	"github.com/fcvm/fcvm/internal/events"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/vm"
)

var (
	// ErrNotReady: the readiness gate did not open in time.
	ErrNotReady = errors.New("the VM did not get ready")

	errEnded = fmt.Errorf("%w: it has ended", vm.ErrNotRunning)
)

// maxLogLine bounds what of an output line a log gate looks at, bytes.
const maxLogLine = 64 << 10

// watchGate waits for the gate, and ends the VM if it does not open in time.
func (in *instance) watchGate(ctx context.Context) {
	began := time.Now()
	g := in.Spec.Gate
	if err := in.openGate(ctx, g); err != nil {
		if ctx.Err() == nil {
			in.fail(fmt.Errorf("%w: %s within %s: %w%s", ErrNotReady, gateText(g), g.Timeout, err, in.consoleText()))
		}
		return
	}
	in.gateLeft.Store(0)
	if in.SaveSnapshot != "" && !in.saved {
		snap, err := in.capture(ctx, captureOptions{name: in.SaveSnapshot, guest: snapshot.GuestRunning})
		if err != nil {
			if ctx.Err() == nil {
				in.fail(err)
			}
			return
		}
		snap.Release()
		in.saved = true
	}
	if err := in.vm.Update(func(r *vm.Record) error {
		r.Ready = true
		if g.Kind != vm.GateStarted {
			r.Phases = append(r.Phases, vm.Phase{Name: "ready", Duration: time.Since(began)})
		}
		return nil
	}); err != nil {
		in.Verbose(err.Error())
	}
	if in.pages != nil {
		_ = in.pages.Ready() // a server that is gone shows elsewhere
	}
	in.vm.Tell(events.Ready, "")
	in.setReady(nil)
	if in.Ready != nil && !in.wasReady {
		in.Ready(in.vm.Record().ID)
	}
	in.wasReady = true
}

// gatePoll is how exactly the time is measured that a gate may stay closed.
const gatePoll = 100 * time.Millisecond

// gateTime returns a context that ends when the gate has been closed for longer
// than it may be: over all restarts until it is open, and without the time in
// which the VM was paused.
func (in *instance) gateTime(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	in.gateLeft.CompareAndSwap(0, int64(limit))
	go func() {
		tick := time.NewTicker(gatePoll)
		defer tick.Stop()
		for last := time.Now(); ; {
			select {
			case <-ctx.Done():
				return
			case now := <-tick.C:
				if in.vm.Record().Status != vm.StatusPaused && in.gateLeft.Add(int64(last.Sub(now))) <= 0 {
					cancel(context.DeadlineExceeded)
					return
				}
				last = now
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}

func gateText(g vm.Gate) string { return fmt.Sprintf("no %s=%s", g.Kind, g.Value) }

// openGate returns when the gate is open, or with the last reason why not.
func (in *instance) openGate(ctx context.Context, g vm.Gate) error {
	if g.Kind == vm.GateStarted || g.Kind == vm.GateAgent {
		return nil // it runs, and the agent has answered
	}
	ctx, cancel := in.gateTime(ctx, g.Timeout)
	defer cancel()
	if g.Kind == vm.GateLog {
		return in.logSeen.wait(ctx)
	}
	tick := time.NewTicker(g.Interval)
	defer tick.Stop()
	why := context.DeadlineExceeded // until a look says more
	for limit := lookLimit(g); ; {
		began := time.Now()
		err := in.look(ctx, g, limit)
		if time.Since(began) >= limit { // it may not hang, but need more
			limit *= 2
		}
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			why = err
		}
		select {
		case <-ctx.Done():
			return why
		case <-tick.C:
		}
	}
}

// What the first look at a gate may take: one that hangs must leave time for others.
// It may take some intervals if that is more, so that who looks less often is patient.
const (
	lookTime      = 5 * time.Second
	execLookTime  = 30 * time.Second
	lookIntervals = 4
)

func lookLimit(g vm.Gate) time.Duration {
	least := lookTime
	if g.Kind == vm.GateExec {
		least = execLookTime
	}
	return max(least, lookIntervals*g.Interval)
}

// look tries the gate once, for as long as limit.
func (in *instance) look(ctx context.Context, g vm.Gate, limit time.Duration) error {
	// The guest has some time to say why not.
	ctx, cancel := context.WithTimeoutCause(ctx, limit+checkGrace, fmt.Errorf("no answer within %s", limit))
	defer cancel()
	err := in.lookWithin(ctx, g, limit)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (in *instance) lookWithin(ctx context.Context, g vm.Gate, limit time.Duration) error {
	switch g.Kind {
	case vm.GateHTTP:
		return in.agent.Probe(ctx, agentapi.ProbeRequest{HTTP: g.Value, Timeout: limit})
	case vm.GateTCP:
		port, err := strconv.ParseUint(g.Value, 10, 16)
		if err != nil {
			return err
		}
		return in.agent.Probe(ctx, agentapi.ProbeRequest{TCP: uint16(port), Timeout: limit})
	case vm.GateExec:
		code, output, err := in.exec(ctx, []string{"/bin/sh", "-c", g.Value})
		if err == nil && code != 0 {
			err = fmt.Errorf("it ended with code %d: %s", code, bytes.TrimSpace(output))
		}
		return err
	}
	return fmt.Errorf("%w: gate %q", vm.ErrInvalid, g.Kind)
}

// maxCheckOutput bounds what is kept of a check's output, bytes.
const maxCheckOutput = 4 << 10

// checkGrace is how long a guest may take to read that a command is to be killed.
const checkGrace = time.Second

// exec runs a command in the container and returns its exit code and the
// beginning of its output. When ctx ends the command is killed: a check that
// hangs must not be joined by the next one.
func (in *instance) exec(ctx context.Context, args []string) (int, []byte, error) {
	s, err := in.agent.Exec(ctx, agentapi.ExecRequest{Args: args})
	if err != nil {
		return 0, nil, err
	}
	while, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	defer hangUp()
	defer context.AfterFunc(ctx, func() {
		defer time.AfterFunc(checkGrace, hangUp).Stop()
		_ = s.Signal(int(unix.SIGKILL)) // it fails when there is nothing to kill any more
		hangUp()
	})()
	var out limitedBuffer
	exit, err := s.Run(while, agentclient.Stdio{Stdout: &out, Stderr: &out})
	if ctx.Err() != nil {
		return 0, nil, ctx.Err()
	}
	if err != nil {
		return 0, nil, err
	}
	if exit.Failed {
		return exit.Code, []byte(exit.Error), nil
	}
	return exit.Code, out.b.Bytes(), nil
}

// limitedBuffer keeps the beginning of what is written to it.
type limitedBuffer struct{ b bytes.Buffer }

func (l *limitedBuffer) Write(p []byte) (int, error) {
	l.b.Write(p[:min(len(p), maxCheckOutput-l.b.Len())])
	return len(p), nil
}

// watchOutput looks for the line that a log gate waits for in what passes by.
func (in *instance) watchOutput(w io.Writer) io.Writer {
	if in.Spec.Gate.Kind != vm.GateLog {
		return w
	}
	re, err := regexp.Compile(in.Spec.Gate.Value)
	if err != nil {
		return w // it was checked when it was read
	}
	return &lineWatcher{w: w, re: re, seen: in.logSeen}
}

// lineWatcher passes on what is written to it and looks at its lines.
type lineWatcher struct {
	w    io.Writer
	re   *regexp.Regexp
	seen *latch

	mu   sync.Mutex
	line []byte
	over bool // it was seen: nothing is looked at any more
}

func (l *lineWatcher) Write(p []byte) (int, error) {
	l.watch(p)
	if l.w == nil {
		return len(p), nil
	}
	return l.w.Write(p)
}

func (l *lineWatcher) watch(p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(p) > 0 && !l.over {
		part, rest, whole := bytes.Cut(p, []byte("\n"))
		if room := maxLogLine - len(l.line); room > 0 {
			l.line = append(l.line, part[:min(len(part), room)]...)
		}
		// A line counts before its end: a prompt has none. A terminal's ends with \r\n.
		if l.re.Match(bytes.TrimSuffix(l.line, []byte("\r"))) {
			l.over = true
			l.seen.set(nil)
		}
		if whole {
			l.line = l.line[:0]
		}
		p = rest
	}
}
