package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/vm"
)

// detachedEnv tells a run that it is the one in the background, and which
// descriptor it writes its id to once the VM is ready.
const (
	detachedEnv = "FCVM_DETACHED"
	detachedFD  = 3
	// detachedFileFD is the first of the files that it is given besides.
	detachedFileFD = 4
	maxIDLine      = 4096 // bytes
)

// runDetached runs this very command in the background, as what: the VM, or
// another that serves. It prints what that has to say when it is ready, as an id.
// files are open in it, from detachedFileFD on.
func (a *app) runDetached(ctx context.Context, what string, files ...*os.File) error {
	cmd := a.again()
	cmd.ExtraFiles = files
	id, err := startDetached(ctx, what, cmd)
	if err == nil {
		_, err = io.WriteString(a.sys.Stdout, id+"\n")
	}
	return err
}

// startDetached starts this program in a session of its own, and returns what
// it says when it is ready, as the VM's id. Until then it shows progress and
// errors itself: it has our stderr.
func startDetached(ctx context.Context, what string, cmd *exec.Cmd) (id string, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return "", fmt.Errorf("start %s in the background: %w", what, err)
	}
	defer func() { _ = r.Close() }()
	cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%d", detachedEnv, detachedFD))
	cmd.Stderr, cmd.ExtraFiles = os.Stderr, append([]*os.File{w}, cmd.ExtraFiles...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// What the caller has open besides (a lock, a pipe that somebody reads to its
	// end) is not to stay open for as long as the VM runs. Kernels before 5.11
	// cannot be told so.
	_ = unix.CloseRange(detachedFD, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return "", fmt.Errorf("start %s in the background: %w", what, err)
	}
	defer passSignals(ctx, cmd.Process)()
	id, err = bufio.NewReader(io.LimitReader(r, maxIDLine)).ReadString('\n')
	if err == nil {
		return strings.TrimSpace(id), nil
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return "", exitStatus(exit.ExitCode()) // it has said why
	}
	return "", fmt.Errorf("%s ended before it was ready: %w", what, errors.Join(err, errors.New("no reason given")))
}

// again is this program with the same arguments.
func (a *app) again(env ...string) *exec.Cmd { return itself(a.sys.Args, env...) }

// itself is this program with other arguments. It has no context: a VM is not
// to end with the process that has started it.
func itself(args []string, env ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...) //nolint:noctx // see above
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), env...)
	return cmd
}

// passSignals gives a process the signals that this one gets, until stop.
func passSignals(ctx context.Context, p *os.Process) (stop func()) {
	signals, stopSignals := containerSignals()
	done := make(chan struct{})
	go func() {
		for {
			select {
			case sig := <-signals:
				_ = p.Signal(sig) // one that has ended needs none
			case <-ctx.Done():
				_ = p.Signal(syscall.SIGTERM)
				return
			case <-done:
				return
			}
		}
	}()
	return func() {
		stopSignals()
		close(done)
	}
}

// isDetached reports whether this process is the run in the background.
func (s System) isDetached() bool { return s.getenv(detachedEnv) != "" }

// letGo tells the waiting command that the VM is ready, and leaves its
// terminal and directory.
func letGo(id string) {
	status := os.NewFile(detachedFD, "status")
	_, _ = io.WriteString(status, strings.TrimSpace(id)+"\n") // nobody may be waiting any more
	_ = status.Close()
	if null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0); err == nil {
		for fd := range 3 {
			_ = unix.Dup3(int(null.Fd()), fd, 0)
		}
		_ = null.Close()
	}
	_ = os.Chdir("/") // else its file system could not be unmounted
}

// checkDetached fills in what -d changes, and refuses what it rules out.
func (o *runOptions) checkDetached(logsGiven bool) error {
	if !o.detach {
		return nil
	}
	if !logsGiven {
		o.logs = vm.LogsFile
	}
	if o.logs != vm.LogsFile {
		return fmt.Errorf("%w: --logs %s: the output of a VM in the background goes to its log file", vm.ErrInvalid, o.logs)
	}
	return nil
}
