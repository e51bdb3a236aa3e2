// Package launch starts a VMM as a plain child of this process, and is what
// other launchers are built on: whatever it starts dies with this process,
// however this process dies.
package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/vmm"
)

// Direct starts programs as plain children.
type Direct struct{}

// Launch implements vmm.Launcher. ctx bounds the start only.
func (Direct) Launch(ctx context.Context, c vmm.Command) (vmm.Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return StartBy(Cmd(c), Attr(c), c.Seccomp, nil)
}

// Cmd is the command in terms of os/exec, for Start.
func Cmd(c vmm.Command) *exec.Cmd {
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Env, cmd.Dir, cmd.ExtraFiles = c.Env, c.Dir, c.Extra
	// Assigned only when set: a nil *os.File in an interface is not nil.
	if c.Stdin != nil {
		cmd.Stdin = c.Stdin
	}
	if c.Stdout != nil {
		cmd.Stdout = c.Stdout
	}
	if c.Stderr != nil {
		cmd.Stderr = c.Stderr
	}
	return cmd
}

// Attr is how the command's process is to be born: in a session of its own, as
// Ctrl-C in the terminal is for the supervisor, and in its control group.
func Attr(c vmm.Command) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setsid: true}
	if c.Cgroup != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, int(c.Cgroup.Fd())
	}
	return attr
}

// Process is a child that dies with this process.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	exit vmm.Exit
}

// Start starts cmd, whose files must be *os.File, with attr and a
// parent-death signal. That signal comes when the thread ends that started
// the child, so a thread is kept for as long as the child lives.
func Start(cmd *exec.Cmd, attr *syscall.SysProcAttr) (*Process, error) {
	return StartBy(cmd, attr, nil, nil)
}

// StartBy is Start with a filter of system calls (nil: none), on a thread that
// by has set up (nil: any): by calls start once, on the thread that it is called
// on, which it leaves as it was.
func StartBy(cmd *exec.Cmd, attr *syscall.SysProcAttr, filter []unix.SockFilter, by func(start func() error) error) (*Process, error) {
	if by == nil {
		by = func(start func() error) error { return start() }
	}
	attr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr = attr
	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		if filter == nil {
			defer runtime.UnlockOSThread()
		} // else nobody else may have the thread: it ends with this goroutine
		err := by(func() error {
			if err := setFilter(filter); err != nil {
				return err
			}
			return cmd.Start()
		})
		if err != nil && cmd.Process != nil { // it was started, and the thread is not as it was
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
		started <- err
		if err == nil {
			p.exit = exitOf(cmd.Wait(), cmd.ProcessState)
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return p, nil
}

// setFilter filters the system calls of this thread and of what it starts.
func setFilter(filter []unix.SockFilter) error {
	if filter == nil {
		return nil
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no-new-privileges: %w", err)
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
	runtime.KeepAlive(&prog)
	if err != nil {
		return fmt.Errorf("filter system calls: %w", err)
	}
	return nil
}

func exitOf(err error, st *os.ProcessState) vmm.Exit {
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return vmm.Exit{Code: -1, Reason: err.Error()}
	}
	ws, ok := st.Sys().(syscall.WaitStatus)
	if ok && ws.Signaled() {
		return vmm.Exit{Code: -1, Signal: int(ws.Signal()), Reason: "killed by " + unix.SignalName(ws.Signal())}
	}
	return vmm.Exit{Code: st.ExitCode(), Reason: fmt.Sprintf("ended with status %d", st.ExitCode())}
}

// PID implements vmm.Process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal implements vmm.Process. To signal what has ended is no error.
func (p *Process) Signal(sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %s to process %d: %w", sig, p.PID(), err)
	}
	return nil
}

// Wait implements vmm.Process.
func (p *Process) Wait() vmm.Exit {
	<-p.done
	return p.exit
}
