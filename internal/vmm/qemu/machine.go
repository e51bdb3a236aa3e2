package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/serialmux"
	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/launch"
)

// machine is one running QEMU.
type qemuMachine struct {
	proc    vmm.Process
	mon     *qmp
	agent   *serialmux.Host
	console string
	log     string

	done chan struct{}
	exit vmm.Exit
	once sync.Once
}

// Start implements vmm.Driver.
func (d *Driver) Start(ctx context.Context, cfg vmm.Config) (vmm.Machine, error) {
	if d.program == "" {
		return nil, fmt.Errorf("%w: %s is not installed", vmm.ErrUnavailable, programName())
	}
	if err := cfg.CheckFiles(); err != nil {
		return nil, err
	}
	monitor, theirMonitor, err := socketPair("monitor")
	if err != nil {
		return nil, err
	}
	agent, theirAgent, err := socketPair("agent")
	if err != nil {
		_ = monitor.Close()
		_ = theirMonitor.Close()
		return nil, err
	}
	extra := []*os.File{theirMonitor, theirAgent, cfg.Console}
	if cfg.Net != nil && cfg.Net.Socket != nil {
		extra = append(extra, cfg.Net.Socket)
	}
	launcher := cfg.Launcher
	if launcher == nil {
		launcher = launch.Direct{}
	}
	proc, err := launcher.Launch(ctx, vmm.Command{
		Path: d.program, Args: args(&cfg, d.kvm.RunsGuest), Dir: cfg.Dir,
		Env: []string{"PATH=/usr/bin:/bin"}, Stdout: cfg.VMMLog, Stderr: cfg.VMMLog, Extra: extra,
	})
	_ = theirMonitor.Close()
	_ = theirAgent.Close()
	if err != nil {
		_ = monitor.Close()
		_ = agent.Close()
		return nil, err
	}
	m := &qemuMachine{
		proc: proc, done: make(chan struct{}),
		console: cfg.Console.Name(), log: cfg.VMMLog.Name(),
	}
	go func() {
		m.exit = m.explain(proc.Wait())
		close(m.done)
	}()
	if m.agent, err = serialmux.NewHost(agent); err == nil {
		m.mon, err = newQMP(ctx, monitor)
	}
	if err != nil {
		return nil, m.abort(ctx, monitor, err)
	}
	return m, nil
}

// abort ends a machine that did not come up. What QEMU itself says is a
// better reason than the connection that it closed.
func (m *qemuMachine) abort(ctx context.Context, monitor net.Conn, err error) error {
	_ = monitor.Close()
	if m.agent != nil {
		_ = m.agent.Close()
	}
	if ctx.Err() == nil && errors.Is(err, vmm.ErrExited) {
		<-m.done
		err = fmt.Errorf("%w: %s", vmm.ErrExited, m.exit.Reason)
	}
	_ = m.proc.Signal(syscall.SIGKILL)
	<-m.done
	return fmt.Errorf("start QEMU: %w", err)
}

// explain adds what is known to how the process ended.
func (m *qemuMachine) explain(e vmm.Exit) vmm.Exit {
	if e.Signal != 0 {
		return e
	}
	if p := vmm.PanicLine(m.console); p != "" {
		e.Reason = "the guest's kernel panicked: " + p
		return e
	}
	if e.Code == 0 {
		e.Reason = "the guest powered off"
		return e
	}
	if l := vmm.Tail(m.log, 1); len(l) == 1 {
		e.Reason = "QEMU failed: " + l[0]
	}
	return e
}

// Dial implements vmm.Machine.
func (m *qemuMachine) Dial(ctx context.Context) (net.Conn, error) {
	select {
	case <-m.done:
		return nil, fmt.Errorf("%w: %s", vmm.ErrExited, m.exit.Reason)
	default:
		return m.agent.Dial(ctx)
	}
}

// Pause implements vmm.Machine.
func (m *qemuMachine) Pause(ctx context.Context) error { return m.mon.execute(ctx, "stop", nil, nil) }

// Resume implements vmm.Machine.
func (m *qemuMachine) Resume(ctx context.Context) error { return m.mon.execute(ctx, "cont", nil, nil) }

// Kill implements vmm.Machine.
func (m *qemuMachine) Kill(ctx context.Context) error {
	if err := m.proc.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("kill QEMU: %w", context.Cause(ctx))
	}
}

// Done implements vmm.Machine.
func (m *qemuMachine) Done() <-chan struct{} { return m.done }

// Exit implements vmm.Machine.
func (m *qemuMachine) Exit() vmm.Exit { <-m.done; return m.exit }

// PID implements vmm.Machine.
func (m *qemuMachine) PID() int { return m.proc.PID() }

// Close implements vmm.Machine.
func (m *qemuMachine) Close() error {
	m.once.Do(func() {
		_ = m.proc.Signal(syscall.SIGKILL)
		<-m.done
		_ = m.agent.Close()
		_ = m.mon.Close()
	})
	return nil
}

// socketPair returns a connection and the file that is its other end.
func socketPair(name string) (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make the %s socket: %w", name, err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	c, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		_ = theirs.Close()
		return nil, nil, fmt.Errorf("make the %s socket: %w", name, err)
	}
	return c, theirs, nil
}
