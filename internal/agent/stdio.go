package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// pipeSize is what the kernel buffers of one stream, bytes: large enough that
// a fast writer is not woken for every page.
const pipeSize = 1 << 20

// ttyGrace is how long a terminal's output is waited for after its process
// has ended, if somebody else keeps the terminal open.
const ttyGrace = 500 * time.Millisecond

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
	grace time.Duration
	hold  chan struct{} // nil, or closed when the pump may begin
}

// newStdio makes the streams and gives the process's ends to cmd.
func newStdio(cmd *exec.Cmd, tty, stdin bool) (*stdio, error) {
	if tty {
		return newTTY(cmd)
	}
	s := &stdio{}
	for _, o := range []struct {
		frame agentapi.FrameType
		to    *io.Writer
	}{{agentapi.FrameStdout, &cmd.Stdout}, {agentapi.FrameStderr, &cmd.Stderr}} {
		w, err := s.outPipe(o.frame)
		if err != nil {
			s.close()
			return nil, err
		}
		*o.to = w
	}
	if stdin {
		r, w, err := os.Pipe()
		if err != nil {
			s.close()
			return nil, fmt.Errorf("make a pipe: %w", err)
		}
		enlarge(w)
		cmd.Stdin, s.stdin = r, w
		s.theirs = append(s.theirs, r)
	}
	return s, nil
}

// outPipe adds a pipe that the process writes to, and returns its end of it.
func (s *stdio) outPipe(frame agentapi.FrameType) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	enlarge(w)
	s.theirs = append(s.theirs, w)
	s.out = append(s.out, &output{frame: frame, f: r})
	return w, nil
}

// enlarge gives a pipe the larger buffer, if the kernel has it to give.
func enlarge(pipe *os.File) {
	if c, err := pipe.SyscallConn(); err == nil {
		_ = c.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) })
	}
}

func newTTY(cmd *exec.Cmd) (*stdio, error) {
	master, slave, err := pty.Open()
	if err != nil {
		return nil, fmt.Errorf("open a terminal: %w", err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	return &stdio{
		stdin: master, tty: master, theirs: []*os.File{slave},
		out: []*output{{frame: agentapi.FrameStdout, f: master, grace: ttyGrace}},
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

// writeStdin waits until the process has taken the data, or has ended.
func (s *stdio) writeStdin(data []byte) {
	if s.stdin != nil {
		_, _ = s.stdin.Write(data) // a process that does not read is no error
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
// end open (Podman's monitor does, for a while) and goes on writing. When
// nobody is there to send to any more, the process gets to know it by an
// error of its next write.
func (o *output) pump(send func(agentapi.FrameType, []byte) error) {
	if o.hold != nil {
		<-o.hold
	}
	if err := o.pumpAll(send); err != nil {
		_ = o.f.Close()
	}
}

// pumpAll returns the error of send, if there was one.
func (o *output) pumpAll(send func(agentapi.FrameType, []byte) error) error {
	buf := make([]byte, agentapi.MaxFrame)
	for {
		n, err := o.f.Read(buf)
		if n > 0 {
			if err := send(o.frame, buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return nil
		}
	}
	// What the process has written itself is no more than the pipe holds.
	for left := pipeSize; left > 0; {
		n := o.readNow(buf)
		if n == 0 {
			return nil
		}
		if err := send(o.frame, buf[:n]); err != nil {
			return err
		}
		left -= n
	}
	return nil
}

// readNow reads what is there and does not wait, nor mind a deadline.
func (o *output) readNow(buf []byte) int {
	c, err := o.f.SyscallConn()
	if err != nil {
		return 0
	}
	var n int
	if cerr := c.Control(func(fd uintptr) {
		// The runtime's poller has made the descriptor non-blocking.
		for n, err = unix.Read(int(fd), buf); errors.Is(err, unix.EINTR); {
			n, err = unix.Read(int(fd), buf)
		}
	}); cerr != nil || err != nil {
		return 0
	}
	return n
}

// finish says that the process has ended: nothing more is written.
func (o *output) finish() {
	_ = o.f.SetReadDeadline(time.Now().Add(o.grace))
}

// text takes what is in the stream now as a message for people, its last
// limit bytes at most. It is called in place of pump, or before it.
func (o *output) text(limit int) string {
	var all []byte
	for buf := make([]byte, limit); len(all) < pipeSize; {
		n := o.readNow(buf)
		if n == 0 {
			break
		}
		all = append(all, buf[:n]...)
	}
	return strings.TrimSpace(string(all[max(0, len(all)-limit):]))
}
