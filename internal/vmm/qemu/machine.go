package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/serialmux"
	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/launch"
	"github.com/fcvm/fcvm/internal/vmm/memimage"
	"github.com/fcvm/fcvm/internal/vmm/tsc"
)

var (
	_ vmm.Ballooner   = (*machine)(nil)
	_ vmm.Snapshotter = (*machine)(nil)
	_ vmm.Restorer    = (*Driver)(nil)
)

// machine is one running QEMU.
type machine struct {
	*vmm.Child
	dir       string
	mon       *qmp
	shape     shape
	memory    *guestMemory
	agent     *agentPort
	closeOnce sync.Once
	closeErr  error

	// saved is what Snapshot has left to FinishSnapshot, by the memory's file.
	mu    sync.Mutex
	saved map[string][]memimage.Range
}

// Start implements vmm.Driver.
func (d *Driver) Start(ctx context.Context, cfg vmm.Config) (vmm.Machine, error) {
	if err := d.check(&cfg); err != nil {
		return nil, err
	}
	memory, err := newMemory(cfg.MemoryMiB)
	if err != nil {
		return nil, err
	}
	agent, theirAgent, err := socketPair("agent")
	if err != nil {
		_ = memory.Close()
		return nil, err
	}
	h := host{kvm: d.kvm().RunsGuest}
	if !h.kvm {
		h.tscKHz = tsc.KHz()
	}
	m, err := d.spawn(ctx, &cfg, h, memory, theirAgent)
	_ = theirAgent.Close()
	if err != nil {
		_ = agent.Close()
		return nil, err
	}
	session, err := serialmux.NewHost(agent)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start QEMU: %w", err), m.Close())
	}
	m.agent.booted(session)
	return m, nil
}

// check refuses what QEMU cannot do.
func (d *Driver) check(cfg *vmm.Config) error {
	if d.program == "" {
		return fmt.Errorf("%w: %s is not installed", vmm.ErrUnavailable, programName())
	}
	switch {
	case cfg.Metadata != nil:
		return fmt.Errorf("%w: QEMU has no metadata service", vmm.ErrUnsupported)
	case cfg.HugePages:
		return fmt.Errorf("%w: huge pages are for Firecracker only", vmm.ErrUnsupported)
	}
	return cfg.CheckFiles()
}

// spawn starts QEMU and waits until its monitor answers. It owns memory;
// channel is the descriptor fdChannel.
func (d *Driver) spawn(ctx context.Context, cfg *vmm.Config, h host, memory *guestMemory, channel *os.File) (*machine, error) {
	monitor, theirMonitor, err := socketPair("monitor")
	if err != nil {
		_ = memory.Close()
		return nil, err
	}
	extra := []*os.File{theirMonitor, memory.file, channel}
	if cfg.Net != nil && cfg.Net.Socket != nil {
		extra = append(extra, cfg.Net.Socket)
	}
	launcher := cfg.Launcher
	if launcher == nil {
		launcher = launch.Direct{}
	}
	command := vmm.Command{
		Path: d.program, Args: args(cfg, h), Dir: cfg.Dir,
		Env: []string{"PATH=/usr/bin:/bin"}, Stdout: cfg.Console, Stderr: cfg.VMMLog, Extra: extra,
	}
	if h.restore != nil && !h.restore.readOnlyFiles() {
		command.Seccomp = keepHoles()
	}
	proc, err := launcher.Launch(ctx, command)
	_ = theirMonitor.Close()
	if err != nil {
		_ = monitor.Close()
		_ = memory.Close()
		return nil, err
	}
	m := &machine{
		Child: vmm.WatchChild(name, proc, cfg.Console.Name(), cfg.VMMLog.Name()),
		dir:   cfg.Dir, shape: shapeOf(cfg, h), memory: memory, agent: newAgentPort(),
		saved: map[string][]memimage.Range{},
	}
	if m.mon, err = newQMP(ctx, monitor, m.event); err != nil {
		return nil, errors.Join(fmt.Errorf("start QEMU: %w", m.cause(ctx, err)), m.Close())
	}
	return m, nil
}

// event follows what QEMU tells by itself. A guest whose agent ends closes the
// port; the next one that opens it knows nothing of the connections that were,
// and would leave them hanging.
func (m *machine) event(name string, data json.RawMessage) {
	var port struct {
		ID   string `json:"id"`
		Open bool   `json:"open"`
	}
	if name == "VSERPORT_CHANGE" && json.Unmarshal(data, &port) == nil && port.ID == portID && !port.Open {
		m.agent.hungUp()
	}
}

// cause returns what a failed call came from. What QEMU itself says is a better
// reason than the connection that it closed.
func (m *machine) cause(ctx context.Context, err error) error {
	if errors.Is(err, vmm.ErrExited) {
		return m.Cause(ctx, err)
	}
	return err
}

// Dial implements vmm.Machine.
func (m *machine) Dial(ctx context.Context) (net.Conn, error) {
	if err := m.Err(); err != nil {
		return nil, err
	}
	return m.agent.dial(ctx)
}

// Pause implements vmm.Machine.
func (m *machine) Pause(ctx context.Context) error { return m.mon.execute(ctx, "stop", nil, nil) }

// Resume implements vmm.Machine.
func (m *machine) Resume(ctx context.Context) error {
	if err := m.mon.execute(ctx, "cont", nil, nil); err != nil {
		return err
	}
	m.agent.resumed(m)
	return nil
}

// SetBalloon implements vmm.Ballooner. QEMU is told what the guest is to keep.
func (m *machine) SetBalloon(ctx context.Context, mib int) error {
	if m.memory.private {
		return fmt.Errorf("%w: QEMU gives nothing back of memory that is shared with a snapshot, so the balloon of a clone is of no use", vmm.ErrUnsupported)
	}
	keep := struct {
		Value int64 `json:"value"` // bytes
	}{int64(m.shape.MemoryMiB-mib) << 20}
	return m.mon.execute(ctx, "balloon", keep, nil)
}

// Close implements vmm.Machine.
func (m *machine) Close() error {
	m.closeOnce.Do(func() {
		err := m.Kill(context.Background())
		if m.mon != nil {
			_ = m.mon.Close()
		}
		m.agent.close()
		m.closeErr = errors.Join(err, m.memory.Close(), removeAgentSocket(m.dir))
	})
	return m.closeErr
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
