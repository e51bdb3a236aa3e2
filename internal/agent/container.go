package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
)

var (
	errStarted    = errors.New("the container was started already")
	errNotRunning = errors.New("the container is not running")
)

const (
	// startPoll is how often the container is looked for while it starts.
	// Nothing of the container waits for it.
	startPoll = 5 * time.Millisecond

	// maxStartError bounds what is told of a failed start, bytes.
	maxStartError = 8 << 10
)

// container is the one container of a guest.
type container struct {
	agent   *agent
	session *session
	running chan struct{} // closed when the first process runs
	ended   chan struct{} // closed when Podman has ended

	mu      sync.Mutex
	started bool
	pid     int // of the first process; 0: there is or was none
	pidfd   int // of it; -1 when it does not run
}

func newContainer(a *agent) *container {
	c := &container{agent: a, pidfd: -1, running: make(chan struct{}), ended: make(chan struct{})}
	c.session = newSession(func(sig syscall.Signal) { _ = c.signal(int(sig)) })
	return c
}

// start runs the container and returns the id of its first process. A
// container that could not be started is reported as an exit, to whoever is
// attached, and the id is then 0. The container does not end with ctx.
func (c *container) start(ctx context.Context, spec agentapi.Container) (int, error) {
	if err := c.launch(&spec); err != nil {
		return 0, err
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-c.running:
	case <-c.ended:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pid, nil
}

// launch calls Podman, once.
func (c *container) launch(spec *agentapi.Container) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.started {
		return errStarted
	}
	c.started = true
	c.agent.state.set(agentapi.PhaseStarting)
	if err := writePodmanConfig(spec); err != nil {
		return err
	}
	cmd := podmanRun(spec)
	io, err := newStdio(cmd, spec.TTY, spec.Interactive)
	if err != nil {
		return err
	}
	stderr, err := io.podmanErrors(cmd)
	if err != nil {
		io.close()
		return err
	}
	child, err := c.agent.spawn.start(cmd)
	io.started()
	if err != nil {
		io.close()
		return fmt.Errorf("start podman: %w", err)
	}
	release := sync.OnceFunc(func() { close(stderr.hold) })
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if c.watch() && !spec.TTY {
			release()
		}
	}()
	go c.supervise(io, func() agentapi.Exit {
		ws := <-child.done
		close(c.ended)
		<-watched
		defer release()
		return c.exit(exitCode(ws), stderr)
	})
	return nil
}

// podmanErrors returns the stream that Podman's own messages come by. It is
// held back until the container runs: what a Podman says that could not start
// it is not the container's output.
func (s *stdio) podmanErrors(cmd *exec.Cmd) (*output, error) {
	if s.tty != nil {
		w, err := s.outPipe(agentapi.FrameStderr)
		if err != nil {
			return nil, err
		}
		cmd.Stderr = w
	}
	o := s.out[len(s.out)-1]
	o.hold = make(chan struct{})
	return o, nil
}

// supervise follows the container to its end.
func (c *container) supervise(io *stdio, wait func() agentapi.Exit) {
	exit := c.session.run(io, wait)
	c.agent.state.exited(exit)
	c.session.finish(exit)
}

// watch waits until the first process runs, or Podman has ended, and reports
// whether it ran.
func (c *container) watch() bool {
	tick := time.NewTicker(startPoll)
	defer tick.Stop()
	for over := false; !over; {
		select {
		case <-c.ended:
			over = true // a short life may have gone by between two looks
		case <-tick.C:
		}
		pid := startedPID()
		if pid == 0 {
			continue
		}
		c.mu.Lock()
		c.pid = pid
		if fd, err := unix.PidfdOpen(pid, 0); err == nil && !over {
			c.pidfd = fd
		}
		c.mu.Unlock()
		c.agent.state.set(agentapi.PhaseRunning)
		close(c.running)
		if c.agent.afterStart != nil {
			go c.agent.afterStart()
		}
		return true
	}
	return false
}

// startedPID returns the id of the container's first process if it has been
// started: the runtime makes a process, Podman's monitor writes its id, and
// it waits at a FIFO, which the runtime removes, for the order to go on.
func startedPID() int {
	b, err := os.ReadFile(pidFile)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 0 {
		return 0
	}
	if fifos, err := filepath.Glob(runtimeState + "/*/exec.fifo"); err != nil || len(fifos) > 0 {
		return 0
	}
	return pid
}

// exit tells an exit code of the container from one of Podman: the container
// has not run if it never had a process.
func (c *container) exit(code int, stderr *output) agentapi.Exit {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfd >= 0 {
		_ = unix.Close(c.pidfd)
		c.pidfd = -1
	}
	e := agentapi.Exit{Code: code}
	if c.pid != 0 {
		return e
	}
	e.Failed, e.Error = true, startError(stderr.text(maxStartError))
	if code != 126 && code != 127 {
		e.Code = 125
	}
	return e
}

// startError is Podman's message without what it puts before each.
func startError(text string) string {
	if text == "" {
		return "podman could not start the container and did not say why"
	}
	return strings.TrimPrefix(text, "Error: ")
}

// signal goes straight to the container's first process.
func (c *container) signal(sig int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfd < 0 {
		return errNotRunning
	}
	if err := unix.PidfdSendSignal(c.pidfd, syscall.Signal(sig), nil, 0); err != nil {
		return fmt.Errorf("send signal %d: %w", sig, err)
	}
	return nil
}
