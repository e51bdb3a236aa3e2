package agent

import (
	"errors"
	"fmt"
	"net"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// command is a process beside the container's first one.
type command interface {
	// start starts it and returns its streams. An error that is a *notStarted
	// says with which exit.
	start() (*stdio, error)
	// signal reaches it and what it has started in its session; before it runs,
	// as soon as it does.
	signal(syscall.Signal)
	// wait returns when it has ended. It is called once, after start.
	wait() agentapi.Exit
}

// notStarted is a command that never ran.
type notStarted struct{ exit agentapi.Exit }

func (e *notStarted) Error() string { return e.exit.Error }

// newExec refuses what could not be run before the connection is taken over.
func (a *agent) newExec(req agentapi.ExecRequest) (command, error) {
	if len(req.Args) == 0 {
		return nil, errors.New("no command given")
	}
	if req.Guest {
		return a.newGuestCommand(req)
	}
	return a.newEntry(req)
}

// serveExec runs the command for as long as somebody is connected to it, and
// returns when it has ended and the peer knows, or the peer is gone.
func serveExec(c command, conn net.Conn, detach bool) {
	s := newSession(c.signal)
	lost := make(chan struct{})
	go func() {
		s.serve(conn)
		s.abandon()
		close(lost)
	}()
	io, err := c.start()
	exit := startFailure(err)
	switch {
	case err != nil:
	case detach:
		go leave(c, io)
	default:
		exit = s.run(io, func() agentapi.Exit { return waitOrHangUp(c, lost) })
	}
	s.finish(exit)
	<-lost
}

func waitOrHangUp(c command, lost <-chan struct{}) agentapi.Exit {
	ended := make(chan agentapi.Exit, 1)
	go func() { ended <- c.wait() }()
	select {
	case exit := <-ended:
		return exit
	case <-lost:
		c.signal(unix.SIGHUP)
		return <-ended
	}
}

// leave stays with a detached command. If it has a terminal, that is read until
// its end, so that nobody waits for room there.
func leave(c command, io *stdio) {
	discard := func(agentapi.FrameType, []byte) error { return nil }
	var pumps sync.WaitGroup
	for _, o := range io.out {
		pumps.Go(func() { o.pump(discard) })
	}
	c.wait()
	pumps.Wait()
	io.close()
}

// startFailure gives the exit codes that shells use.
func startFailure(err error) agentapi.Exit {
	var n *notStarted
	switch {
	case err == nil:
		return agentapi.Exit{}
	case errors.As(err, &n):
		return n.exit
	}
	e := agentapi.Exit{Code: 126, Failed: true, Error: err.Error()}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, unix.ENOENT) {
		e.Code = 127
	}
	return e
}

// guestCommand runs in the guest, around the container.
type guestCommand struct {
	agent *agent
	req   agentapi.ExecRequest
	cmd   *exec.Cmd
	runs  running
	child *child
}

func (a *agent) newGuestCommand(req agentapi.ExecRequest) (*guestCommand, error) {
	if req.User != "" && req.User != "root" && req.User != "0" {
		return nil, fmt.Errorf("user %q: in the guest commands run as root", req.User)
	}
	cmd := exec.Command(req.Args[0], req.Args[1:]...)
	cmd.Env = append([]string{"PATH=" + guestPath, "HOME=/root", "TERM=xterm"}, req.Env...)
	cmd.Dir = req.WorkDir
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	return &guestCommand{agent: a, req: req, cmd: cmd}, nil
}

func (c *guestCommand) start() (*stdio, error) {
	io := &stdio{}
	if !c.req.Detach || c.req.TTY {
		var err error
		if io, err = newStdio(c.cmd, c.req.TTY, c.req.Stdin); err != nil {
			return nil, err
		}
	}
	if c.req.Rows > 0 && c.req.Cols > 0 {
		io.resize(c.req.Rows, c.req.Cols)
	}
	if c.cmd.SysProcAttr == nil {
		c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
	child, err := c.agent.spawn.start(c.cmd)
	io.started()
	if err != nil {
		io.close()
		return nil, err
	}
	c.child = child
	c.runs.began(child.pid)
	return io, nil
}

func (c *guestCommand) signal(sig syscall.Signal) { c.runs.signal(sig) }

func (c *guestCommand) wait() agentapi.Exit {
	ws := <-c.child.done
	c.runs.ended()
	return agentapi.Exit{Code: exitCode(ws)}
}
