package agent

import (
	"errors"
	"fmt"
	"net"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// execution is a command that runs beside the container, for as long as
// somebody is connected to it.
type execution struct {
	agent *agent
	req   agentapi.ExecRequest
	cmd   *exec.Cmd
}

// newExec refuses what could not be run before the connection is taken over.
func (a *agent) newExec(req agentapi.ExecRequest) (*execution, error) {
	if len(req.Args) == 0 {
		return nil, errors.New("no command given")
	}
	if !req.Guest {
		return nil, errors.New("commands run in the guest only: exec --guest")
	}
	if req.User != "" && req.User != "root" && req.User != "0" {
		return nil, fmt.Errorf("user %q: in the guest commands run as root", req.User)
	}
	cmd := exec.Command(req.Args[0], req.Args[1:]...)
	cmd.Env = append([]string{"PATH=" + guestPath, "HOME=/root", "TERM=xterm"}, req.Env...)
	cmd.Dir = req.WorkDir
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	return &execution{agent: a, req: req, cmd: cmd}, nil
}

// serve runs the command and returns when it has ended and the peer knows, or
// the peer is gone.
func (e *execution) serve(conn net.Conn) {
	io, child, err := e.start()
	s := newSession(func(sig syscall.Signal) {
		if child != nil {
			_ = unix.Kill(-child.pid, sig) // the whole group, as a terminal does
		}
	})
	lost := make(chan struct{})
	go func() {
		s.serve(conn)
		s.abandon()
		close(lost)
	}()
	exit := startFailure(err)
	if err == nil {
		exit = s.run(io, func() agentapi.Exit {
			select {
			case ws := <-child.done:
				return agentapi.Exit{Code: exitCode(ws)}
			case <-lost:
				_ = unix.Kill(-child.pid, unix.SIGHUP)
				return agentapi.Exit{Code: exitCode(<-child.done)}
			}
		})
	}
	s.finish(exit)
	<-lost
}

func (e *execution) start() (*stdio, *child, error) {
	io, err := newStdio(e.cmd, e.req.TTY, e.req.Stdin)
	if err != nil {
		return nil, nil, err
	}
	if e.req.Rows > 0 && e.req.Cols > 0 {
		io.resize(e.req.Rows, e.req.Cols)
	}
	if e.cmd.SysProcAttr == nil {
		e.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
	child, err := e.agent.spawn.start(e.cmd)
	io.started()
	if err != nil {
		io.close()
		return nil, nil, err
	}
	return io, child, nil
}

// startFailure gives the exit codes that shells use.
func startFailure(err error) agentapi.Exit {
	if err == nil {
		return agentapi.Exit{}
	}
	e := agentapi.Exit{Code: 126, Failed: true, Error: err.Error()}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, unix.ENOENT) {
		e.Code = 127
	}
	return e
}
