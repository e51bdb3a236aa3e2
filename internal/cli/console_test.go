package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentclient"
	"github.com/fcvm/fcvm/internal/supervisor"
)

const patience = 20 * time.Second

// terminal is a pseudo terminal whose screen a test can read.
type terminal struct {
	t       *testing.T
	control *os.File
	tty     *os.File
	done    chan struct{}

	mu     sync.Mutex
	screen bytes.Buffer
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	control, tty, err := pty.Open()
	if err != nil {
		t.Skipf("no pseudo terminal here: %v", err)
	}
	if err := pty.Setsize(control, &pty.Winsize{Rows: 24, Cols: 80}); err != nil {
		t.Fatal(err)
	}
	term := &terminal{t: t, control: control, tty: tty, done: make(chan struct{})}
	go term.read()
	t.Cleanup(func() {
		_ = tty.Close()
		_ = control.Close()
		<-term.done
	})
	return term
}

func (m *terminal) read() {
	defer close(m.done)
	buf := make([]byte, 4096)
	for {
		n, err := m.control.Read(buf)
		m.mu.Lock()
		m.screen.Write(buf[:n])
		m.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (m *terminal) output() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.screen.String()
}

// waitFor waits until cond holds.
func (m *terminal) waitFor(what string, cond func() bool) {
	m.t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			m.t.Errorf("waited too long for %s; the terminal shows %q", what, m.output())
			return
		}
	}
}

// raw reports whether keys are bytes.
func (m *terminal) raw() bool { return m.lflag()&(unix.ICANON|unix.ECHO|unix.ISIG) == 0 }

// lflag is how the terminal treats keys, termios(3).
func (m *terminal) lflag() uint32 {
	a, err := unix.IoctlGetTermios(int(m.tty.Fd()), unix.TCGETS)
	if err != nil {
		m.t.Fatal(err)
	}
	return a.Lflag
}

func (h *host) on(m *terminal) {
	h.stdin, h.stdout, h.stderr = m.tty, m.tty, m.tty
}

func TestRunWithATerminalIsRawWhileTheContainerRuns(t *testing.T) {
	h, m := newHost(t), newTerminal(t)
	h.on(m)
	h.run = func(_ context.Context, _ supervisor.Deps, o supervisor.Options) (supervisor.Result, error) {
		if m.raw() {
			t.Error("raw before the container runs: Ctrl-C could not end the start")
		}
		o.Started()
		if !m.raw() {
			t.Error("not raw while the container runs")
		}
		if _, err := m.control.Write([]byte("\x03q")); err != nil {
			return supervisor.Result{}, err
		}
		keys := make([]byte, 2)
		if _, err := io.ReadFull(o.Stdio.In, keys); err != nil || string(keys) != "\x03q" {
			t.Errorf("keys %q, %v", keys, err)
		}
		return supervisor.Result{ExitCode: 130}, nil
	}
	if code, _, _ := h.fcvm("run", "-it", "img"); code != 130 {
		t.Errorf("code %d; the terminal shows %q", code, m.output())
	}
	if m.raw() {
		t.Error("the terminal is left raw")
	}
}

func TestTheTerminalIsGivenBackWhenARunFails(t *testing.T) {
	h, m := newHost(t), newTerminal(t)
	h.on(m)
	h.run = func(_ context.Context, _ supervisor.Deps, o supervisor.Options) (supervisor.Result, error) {
		o.Started()
		return supervisor.Result{}, supervisor.ErrGuest
	}
	if code, _, _ := h.fcvm("run", "-it", "img"); code != exitFailed {
		t.Errorf("code %d", code)
	}
	if m.raw() {
		t.Error("the terminal is left raw")
	}
	m.waitFor("the error", func() bool { return strings.Contains(m.output(), "fcvm: the guest ended before its container\r\n") })
}

func TestTheTerminalIsGivenBackOnAPanic(t *testing.T) {
	h, m := newHost(t), newTerminal(t)
	h.on(m)
	defect := errors.New("a defect")
	h.run = func(_ context.Context, _ supervisor.Deps, o supervisor.Options) (supervisor.Result, error) {
		o.Started()
		panic(defect)
	}
	func() {
		defer func() {
			if err, ok := recover().(error); !ok || !errors.Is(err, defect) {
				t.Errorf("recovered %v", err)
			}
		}()
		h.fcvm("run", "-it", "img")
	}()
	if m.raw() {
		t.Error("the terminal is left raw")
	}
}

func TestRunFollowsTheTerminalsSize(t *testing.T) {
	h, m := newHost(t), newTerminal(t)
	h.on(m)
	h.run = func(_ context.Context, _ supervisor.Deps, o supervisor.Options) (supervisor.Result, error) {
		next := func() (s agentclient.Size) {
			select {
			case s = <-o.Stdio.Resize:
			case <-time.After(patience):
				t.Error("no size comes")
			}
			return s
		}
		if s := next(); s != (agentclient.Size{Rows: 24, Cols: 80}) {
			t.Errorf("first size %v", s)
		}
		if err := pty.Setsize(m.control, &pty.Winsize{Rows: 30, Cols: 90}); err != nil {
			return supervisor.Result{}, err
		}
		// The kernel tells only the terminal's own session of the change.
		if err := unix.Kill(os.Getpid(), unix.SIGWINCH); err != nil {
			return supervisor.Result{}, err
		}
		if s := next(); s != (agentclient.Size{Rows: 30, Cols: 90}) {
			t.Errorf("second size %v", s)
		}
		return supervisor.Result{}, nil
	}
	// Without -i the keys stay fcvm's, so that Ctrl-C is a signal.
	if code, _, _ := h.fcvm("run", "-t", "img"); code != 0 {
		t.Errorf("code %d; the terminal shows %q", code, m.output())
	}
}

func TestATerminalWithoutInputNeedsNoTerminalHere(t *testing.T) {
	h := newHost(t)
	h.run = func(_ context.Context, _ supervisor.Deps, o supervisor.Options) (supervisor.Result, error) {
		if !o.Spec.Container.TTY || o.Stdio.In != nil || o.Stdio.Resize != nil {
			t.Errorf("options %+v", o)
		}
		return supervisor.Result{}, nil
	}
	h.ok("run", "-t", "img")
}

func TestProgressIsErasedBeforeTheContainersOutput(t *testing.T) {
	h, m := newHost(t), newTerminal(t)
	h.on(m)
	h.run = func(_ context.Context, _ supervisor.Deps, o supervisor.Options) (supervisor.Result, error) {
		task := o.Progress.Task("convert the image", 0)
		m.waitFor("progress", func() bool { return strings.Contains(m.output(), "convert the image") })
		task.Done(nil)
		o.Started()
		_, err := io.WriteString(o.Stdio.Out, "from the container\n")
		return supervisor.Result{}, err
	}
	if code, _, _ := h.fcvm("run", "img"); code != 0 {
		t.Errorf("code %d", code)
	}
	const erase = "\x1b[1A\r\x1b[J"
	m.waitFor("the output", func() bool { return strings.HasSuffix(m.output(), "from the container\r\n") })
	if out := m.output(); !strings.Contains(out, erase+"from the container") {
		t.Errorf("the terminal got %q", out)
	}
}

func TestQuietRunsShowNoProgress(t *testing.T) {
	h, m := newHost(t), newTerminal(t)
	h.on(m)
	h.run = func(_ context.Context, _ supervisor.Deps, o supervisor.Options) (supervisor.Result, error) {
		task := o.Progress.Task("convert the image", 0)
		time.Sleep(300 * time.Millisecond) // three frames
		task.Done(nil)
		return supervisor.Result{}, nil
	}
	if code, _, _ := h.fcvm("run", "-q", "img"); code != 0 {
		t.Errorf("code %d", code)
	}
	if out := m.output(); out != "" {
		t.Errorf("the terminal got %q", out)
	}
}
