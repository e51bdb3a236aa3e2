package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
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
	// startPoll is how often the container is looked for while it starts, until
	// its runtime is there, and then nearPoll. Nothing of the container waits for
	// it; but in an emulated guest a look is so dear that Podman would.
	startPoll = 25 * time.Millisecond
	nearPoll  = 5 * time.Millisecond

	// maxStartError bounds what is told of a failed start, bytes.
	maxStartError = 8 << 10
)

// engine is what starts containers: Podman.
type engine struct {
	// command makes what runs a container, with its files written.
	command func(*agentapi.Container) (*exec.Cmd, error)
	// firstPID returns the id of the container's first process, once it was
	// started; else 0, and whether that is about to happen.
	firstPID func() (pid int, near bool)
	// id returns the container's id, once it was made.
	id func() (string, error)
	// userFiles is where the hosts, hostname and resolv.conf of a container lie.
	userFiles func(id string) string
	// monitor is where what stays with a container is found; nil: the command itself
	// stays.
	monitor func(id string) monitorFiles

	runtime string // the OCI runtime's program
	state   string // where it keeps a directory for each container
	entries string // for the files of those who enter the container
}

func newPodman() engine {
	return engine{
		command: podmanCommand, firstPID: startedPID, id: containerID,
		userFiles: podmanUserFiles, monitor: podmanMonitor,
		runtime: "/usr/bin/crun", state: runtimeState, entries: runDir + "/exec",
	}
}

// container is the one container of a guest.
type container struct {
	agent   *agent
	engine  engine
	session *session
	ended   chan struct{} // closed when Podman has ended
	watched chan struct{} // closed when pid is known, or known to come never
	left    chan struct{} // closed when monitor is known, or known to come never

	mu      sync.Mutex
	started bool
	pid     int      // of the first process; 0: there is or was none
	pidfd   int      // of it; -1 when it does not run
	monitor *monitor // knows how the container ends; nil: Podman does
}

func newContainer(a *agent) *container {
	c := &container{
		agent: a, engine: newPodman(), pidfd: -1,
		ended: make(chan struct{}), watched: make(chan struct{}), left: make(chan struct{}),
	}
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
	case <-c.watched: // not c.ended: a short life is over before it is seen
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
	c.agent.loadExtra(spec)
	if err := c.agent.shares.wait(); err != nil {
		return err
	}
	cmd, err := c.engine.command(spec)
	if err != nil {
		return err
	}
	io, err := newStdio(cmd, spec.TTY, spec.Interactive)
	if err != nil {
		return err
	}
	stderr, err := io.podmanErrors(cmd)
	if err != nil {
		io.close()
		return err
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	pidfd := -1
	cmd.SysProcAttr.PidFD = &pidfd
	child, err := c.agent.spawn.start(cmd)
	io.started()
	if err != nil {
		io.close()
		return fmt.Errorf("start podman: %w", err)
	}
	release := sync.OnceFunc(func() { close(stderr.hold) })
	go func() {
		needless := c.watch() && !spec.TTY // Podman, from here on
		if needless {
			release()
		}
		close(c.watched)
		if needless {
			c.leave(pidfd)
		}
		close(c.left)
		_ = unix.Close(pidfd)
	}()
	go c.supervise(io, func() agentapi.Exit {
		ws := <-child.done
		close(c.ended)
		<-c.left
		defer release()
		return c.exit(c.code(ws), stderr)
	})
	return nil
}

// code is the exit code of the container, or of the Podman that could not start it.
func (c *container) code(podman syscall.WaitStatus) int {
	c.mu.Lock()
	m, first := c.monitor, c.pidfd
	c.mu.Unlock()
	if m == nil {
		return exitCode(podman)
	}
	return m.wait(first)
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
		pid, near := c.engine.firstPID()
		if near {
			tick.Reset(nearPoll)
		}
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
		return true
	}
	return false
}

// startedPID returns the id of the container's first process if it has been
// started: the runtime makes a process, Podman's monitor writes its id, and
// it waits at a FIFO, which the runtime removes, for the order to go on.
func startedPID() (pid int, near bool) {
	pid, err := readPID(pidFile)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false
	}
	if err != nil {
		return 0, true
	}
	if fifos, err := filepath.Glob(runtimeState + "/*/exec.fifo"); err != nil || len(fifos) > 0 {
		return 0, true
	}
	return pid, true
}

// containerID is the id that Podman has given the container.
func containerID() (string, error) {
	b, err := os.ReadFile(cidFile)
	if err != nil {
		return "", fmt.Errorf("find the container: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
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

// startError is what Podman's last message says, without what Podman and the
// runtime put before and after each.
func startError(text string) string {
	lines := strings.Split(text, "\n")
	last := strings.TrimSpace(lines[len(lines)-1])
	if last == "" {
		return "podman could not start the container and did not say why"
	}
	for _, prefix := range []string{"Error: ", "OCI runtime error: ", "crun: "} {
		last = strings.TrimPrefix(last, prefix)
	}
	for _, suffix := range []string{": OCI runtime attempted to invoke a command that was not found", ": OCI permission denied"} {
		last = strings.TrimSuffix(last, suffix)
	}
	return last
}

// openRoot opens the root of the container, which must run.
func (c *container) openRoot() (*tree, error) {
	t, pidfd, err := c.enter()
	if err == nil {
		_ = unix.Close(pidfd)
	}
	return t, err
}

// enter opens the root of the container, which must run, and a pidfd of its
// first process, for its namespaces.
func (c *container) enter() (root *tree, pidfd int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfd < 0 {
		return nil, -1, errNotRunning
	}
	if root, err = openTree(fmt.Sprintf("/proc/%d/root", c.pid)); err != nil {
		return nil, -1, err
	}
	// The process may have ended, and its id may be another's.
	if err = unix.PidfdSendSignal(c.pidfd, 0, nil, 0); err != nil {
		_ = root.close()
		return nil, -1, errNotRunning
	}
	if pidfd, err = unix.FcntlInt(uintptr(c.pidfd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		_ = root.close()
		return nil, -1, fmt.Errorf("enter the container: %w", err)
	}
	return root, pidfd, nil
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
