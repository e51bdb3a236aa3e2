package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/serialmux"
	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/launch"
	"github.com/fcvm/fcvm/internal/vmm/tsc"
)

var _ vmm.Ballooner = (*machine)(nil)

// machine is one running QEMU.
type machine struct {
	*vmm.Child
	mon       *qmp
	memory    int // of the guest, MiB
	agent     *serialmux.Host
	closeOnce sync.Once
}

// Start implements vmm.Driver.
func (d *Driver) Start(ctx context.Context, cfg vmm.Config) (vmm.Machine, error) {
	if d.program == "" {
		return nil, fmt.Errorf("%w: %s is not installed", vmm.ErrUnavailable, programName())
	}
	if cfg.Metadata != nil {
		return nil, fmt.Errorf("%w: QEMU has no metadata service", vmm.ErrUnsupported)
	}
	if err := cfg.CheckFiles(); err != nil {
		return nil, err
	}
	h := host{kvm: d.kvm.RunsGuest}
	if !h.kvm {
		h.tscKHz = tsc.KHz()
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
	extra := []*os.File{theirMonitor, theirAgent}
	if cfg.Net != nil && cfg.Net.Socket != nil {
		extra = append(extra, cfg.Net.Socket)
	}
	launcher := cfg.Launcher
	if launcher == nil {
		launcher = launch.Direct{}
	}
	proc, err := launcher.Launch(ctx, vmm.Command{
		Path: d.program, Args: args(&cfg, h), Dir: cfg.Dir,
		Env: []string{"PATH=/usr/bin:/bin"}, Stdout: cfg.Console, Stderr: cfg.VMMLog, Extra: extra,
	})
	_ = theirMonitor.Close()
	_ = theirAgent.Close()
	if err != nil {
		_ = monitor.Close()
		_ = agent.Close()
		return nil, err
	}
	m := &machine{memory: cfg.MemoryMiB, Child: vmm.WatchChild(name, proc, cfg.Console.Name(), cfg.VMMLog.Name())}
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
func (m *machine) abort(ctx context.Context, monitor net.Conn, err error) error {
	_ = monitor.Close()
	if m.agent != nil {
		_ = m.agent.Close()
	}
	if errors.Is(err, vmm.ErrExited) {
		err = m.Cause(ctx, err)
	}
	return fmt.Errorf("start QEMU: %w", errors.Join(err, m.Kill(context.Background())))
}

// Dial implements vmm.Machine.
func (m *machine) Dial(ctx context.Context) (net.Conn, error) {
	if err := m.Err(); err != nil {
		return nil, err
	}
	return m.agent.Dial(ctx)
}

// Pause implements vmm.Machine.
func (m *machine) Pause(ctx context.Context) error { return m.mon.execute(ctx, "stop", nil, nil) }

// Resume implements vmm.Machine.
func (m *machine) Resume(ctx context.Context) error { return m.mon.execute(ctx, "cont", nil, nil) }

// SetBalloon implements vmm.Ballooner. QEMU is told what the guest is to keep.
func (m *machine) SetBalloon(ctx context.Context, mib int) error {
	keep := struct {
		Value int64 `json:"value"` // bytes
	}{int64(m.memory-mib) << 20}
	return m.mon.execute(ctx, "balloon", keep, nil)
}

// Close implements vmm.Machine.
func (m *machine) Close() error {
	var err error
	m.closeOnce.Do(func() {
		err = m.Kill(context.Background())
		_ = m.agent.Close()
		_ = m.mon.Close()
	})
	return err
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
