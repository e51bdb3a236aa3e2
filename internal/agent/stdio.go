package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// pipeSize is what the kernel buffers of one stream, bytes: large enough that
// a fast writer is not woken for every page.
const pipeSize = 1 << 20

// stdio is the agent's ends of a process's stdin, stdout and stderr: three
// pipes, or one pseudo-terminal.
type stdio struct {
	stdin  *os.File // nil: the process has /dev/null
	out    []*output
	tty    *os.File // the master; nil without a terminal
	theirs []*os.File
}

// output is one stream of a process.
type output struct {
	frame agentapi.FrameType
	f     *os.File
	fd    int // of f; read directly once the runtime's poller has been told to stop
}

// newStdio makes the streams and gives the process's ends to cmd.
func newStdio(cmd *exec.Cmd, tty, stdin bool, rows, cols uint16) (*stdio, error) {
	if tty {
		return newTTY(cmd, rows, cols)
	}
	s := &stdio{}
	for _, o := range []struct {
		frame agentapi.FrameType
		to    *io.Writer
	}{{agentapi.FrameStdout, &cmd.Stdout}, {agentapi.FrameStderr, &cmd.Stderr}} {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			s.close()
			return nil, fmt.Errorf("make a pipe: %w", err)
		}
		_, _ = unix.FcntlInt(uintptr(p[0]), unix.F_SETPIPE_SZ, pipeSize) // a smaller one does, too
		if err := unix.SetNonblock(p[0], true); err != nil {
			s.close()
			return nil, fmt.Errorf("make a pipe: %w", err)
		}
		w := os.NewFile(uintptr(p[1]), "|1")
		*o.to = w
		s.theirs = append(s.theirs, w)
		s.out = append(s.out, &output{frame: o.frame, f: os.NewFile(uintptr(p[0]), "|0"), fd: p[0]})
	}
	if stdin {
		r, w, err := os.Pipe()
		if err != nil {
			s.close()
			return nil, fmt.Errorf("make a pipe: %w", err)
		}
		cmd.Stdin, s.stdin = r, w
		s.theirs = append(s.theirs, r)
	}
	return s, nil
}

func newTTY(cmd *exec.Cmd, rows, cols uint16) (*stdio, error) {
	master, slave, err := pty.Open()
	if err != nil {
		return nil, fmt.Errorf("open a terminal: %w", err)
	}
	if rows > 0 && cols > 0 {
		_ = pty.Setsize(master, &pty.Winsize{Rows: rows, Cols: cols})
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	return &stdio{
		stdin: master, tty: master, theirs: []*os.File{slave},
		out: []*output{{frame: agentapi.FrameStdout, f: master, fd: -1}},
	}, nil
}

// started closes the process's ends.
func (s *stdio) started() {
	for _, f := range s.theirs {
		_ = f.Close()
	}
	s.theirs = nil
}

func (s *stdio) close() {
	s.started()
	for _, o := range s.out {
		_ = o.f.Close()
	}
	if s.stdin != nil {
		_ = s.stdin.Close()
	}
}

func (s *stdio) resize(rows, cols uint16) {
	if s.tty != nil {
		_ = pty.Setsize(s.tty, &pty.Winsize{Rows: rows, Cols: cols})
	}
}

// closeStdin passes an end of input on: as the end of the pipe, or as the
// character that a terminal takes for it.
func (s *stdio) closeStdin() {
	const ctrlD = 4
	switch {
	case s.tty != nil:
		_, _ = s.tty.Write([]byte{ctrlD})
	case s.stdin != nil:
		_ = s.stdin.Close()
	}
}

// pump sends what the process writes until its end. After finish it sends
// what is still in the pipe and stops, even if somebody else holds the other
// end open (Podman's monitor does, for a while).
func (o *output) pump(send func(agentapi.FrameType, []byte) error) {
	buf := make([]byte, agentapi.MaxFrame)
	for {
		n, err := o.f.Read(buf)
		if n > 0 && send(o.frame, buf[:n]) != nil {
			return
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && o.fd >= 0 {
			break
		}
		if err != nil {
			return
		}
	}
	for {
		n, err := unix.Read(o.fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n <= 0 || err != nil || send(o.frame, buf[:n]) != nil {
			return
		}
	}
}

// finish says that the process has ended: nothing more is written.
func (o *output) finish() {
	_ = o.f.SetReadDeadline(aLongTimeAgo)
}
