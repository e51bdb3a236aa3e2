package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
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

// pidPoll is how often the file with the container's process id is looked
// for. It costs nothing that the container waits for.
const pidPoll = 10 * time.Millisecond

// container is the one container of a guest.
type container struct {
	agent   *agent
	session *session

	mu      sync.Mutex
	started bool
	pidfd   int // of the container's first process; -1 when it does not run
}

func newContainer(a *agent) *container {
	c := &container{agent: a, pidfd: -1}
	c.session = newSession(func(sig syscall.Signal) { _ = c.signal(int(sig)) })
	return c
}

// start runs the container and returns the id of its first process. A
// container that could not be started is reported as an exit, to whoever is
// attached, and the id is then 0.
func (c *container) start(ctx context.Context, spec agentapi.Container) (int, error) {
	c.mu.Lock()
	if c.started {
		c.mu.Unlock()
		return 0, errStarted
	}
	c.started = true
	c.mu.Unlock()
	c.agent.state.set(agentapi.PhaseStarting)

	cmd, err := podmanRun(&spec)
	if err != nil {
		return 0, err
	}
	io, err := newStdio(cmd, spec.TTY, spec.Interactive, 0, 0)
	if err != nil {
		return 0, err
	}
	child, err := c.agent.spawn.start(cmd)
	io.started()
	if err != nil {
		io.close()
		return 0, fmt.Errorf("start podman: %w", err)
	}
	ended := make(chan struct{})
	go c.supervise(io, child, ended)
	return c.waitPID(ctx, ended)
}

// supervise follows the container to its end.
func (c *container) supervise(io *stdio, podman *child, ended chan<- struct{}) {
	exit := c.session.run(io, func() agentapi.Exit {
		ws := <-podman.done
		close(ended)
		return c.exit(exitCode(ws))
	})
	c.agent.state.exited(exit)
	c.session.finish(exit)
}

// exit tells an exit code of the container from one of Podman: the container
// has not run if it never had a process.
func (c *container) exit(code int) agentapi.Exit {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := agentapi.Exit{Code: code}
	if c.pidfd >= 0 {
		_ = unix.Close(c.pidfd)
		c.pidfd = -1
	}
	switch code {
	case 125, 126, 127:
		_, err := readPID()
		e.Failed = err != nil
	}
	return e
}

// waitPID waits until the container has a process, or has ended.
func (c *container) waitPID(ctx context.Context, ended <-chan struct{}) (int, error) {
	tick := time.NewTicker(pidPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-ended:
			return 0, nil
		case <-tick.C:
		}
		pid, err := readPID()
		if err != nil {
			continue
		}
		c.mu.Lock()
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			c.pidfd = fd
		}
		c.mu.Unlock()
		c.agent.state.set(agentapi.PhaseRunning)
		if c.agent.afterStart != nil {
			go c.agent.afterStart()
		}
		return pid, nil
	}
}

func readPID() (int, error) {
	b, err := os.ReadFile(pidFile)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
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

// podmanRun is the command that runs the container from its exploded root,
// with everything of its image given as flags.
func podmanRun(c *agentapi.Container) (*exec.Cmd, error) {
	args := []string{
		"--cgroup-manager=cgroupfs", "--events-backend=none", "--log-level=error",
		"run", "--name=" + c.Name, "--pull=never", "--network=host", "--http-proxy=false",
		"--pidfile=" + pidFile, "--cidfile=" + cidFile,
	}
	if c.TTY {
		// The agent's terminal is the outer one, Podman's the container's.
		args = append(args, "--tty", "--log-driver=none", "--detach-keys=")
	} else {
		// The container writes to the agent's pipes itself: nothing is
		// copied, split or reordered on the way.
		args = append(args, "--log-driver=passthrough")
	}
	flag := func(name, value string) {
		if value != "" {
			args = append(args, "--"+name+"="+value)
		}
	}
	each := func(name string, values []string) {
		for _, v := range values {
			flag(name, v)
		}
	}
	on := func(name string, set bool) {
		if set {
			args = append(args, "--"+name)
		}
	}
	on("interactive", c.Interactive)
	on("privileged", c.Privileged)
	on("read-only", c.ReadOnly)
	flag("workdir", c.WorkDir)
	flag("user", c.User)
	flag("hostname", c.Hostname)
	flag("stop-signal", c.StopSignal)
	each("cap-add", c.CapAdd)
	each("cap-drop", c.CapDrop)
	each("tmpfs", c.Tmpfs)
	each("volume", c.Volumes)
	for k, v := range c.Labels {
		args = append(args, "--label="+k+"="+v)
	}
	health, err := healthFlags(c.Health)
	if err != nil {
		return nil, err
	}
	args = append(args, health...)
	env, err := envFlags(c.Env)
	if err != nil {
		return nil, err
	}
	args = append(args, env...)
	args = append(args, "--rootfs", imageMount+"/"+agentapi.ImageRoot+":O")
	cmd := exec.Command("/usr/bin/podman", append(args, c.Args...)...)
	// DISABLE_HC_SYSTEMD: health checks need no systemd timers.
	cmd.Env = []string{"PATH=" + guestPath, "HOME=/root", "TERM=xterm", "DISABLE_HC_SYSTEMD=true", "TMPDIR=/var/tmp"}
	cmd.Dir = "/"
	return cmd, nil
}
