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

func (e *execution) serve(conn net.Conn) {
	io, err := newStdio(e.cmd, e.req.TTY, e.req.Stdin, e.req.Rows, e.req.Cols)
	var child *child
	if err == nil {
		if e.cmd.SysProcAttr == nil {
			e.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		}
		child, err = e.agent.spawn.start(e.cmd)
		io.started()
	}
	s := newSession(func(sig syscall.Signal) {
		if child != nil {
			_ = unix.Kill(-child.pid, sig) // the whole group, as a terminal does
		}
	})
	if err != nil {
		if io != nil {
			io.close()
		}
		go s.serve(conn)
		s.finish(startFailure(err))
		return
	}
	lost := make(chan struct{})
	go func() {
		s.serve(conn)
		close(lost)
		s.abandon()
	}()
	exit := s.run(io, func() agentapi.Exit {
		select {
		case ws := <-child.done:
			return agentapi.Exit{Code: exitCode(ws)}
		case <-lost:
			_ = unix.Kill(-child.pid, unix.SIGHUP)
			return agentapi.Exit{Code: exitCode(<-child.done)}
		}
	})
	s.finish(exit)
}

// startFailure gives the exit codes that shells use.
func startFailure(err error) agentapi.Exit {
	e := agentapi.Exit{Code: 126, Failed: true, Error: err.Error()}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, unix.ENOENT) {
		e.Code = 127
	}
	return e
}
