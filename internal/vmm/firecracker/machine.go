package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/launch"
	"github.com/fcvm/fcvm/internal/vsocklink"
)

var (
	_ vmm.Ballooner   = (*machine)(nil)
	_ vmm.Snapshotter = (*machine)(nil)
	_ vmm.Restorer    = (*Driver)(nil)
)

// machine is one running Firecracker.
type machine struct {
	*vmm.Child
	dir       string
	memory    int64 // of the guest, bytes
	api       *apiClient
	base      base
	agent     *vsocklink.Host
	saved     atomic.Bool // it has been saved since it last ran
	closeOnce sync.Once
	closeErr  error
}

// Start implements vmm.Driver.
func (d *Driver) Start(ctx context.Context, cfg vmm.Config) (vmm.Machine, error) {
	m, err := d.spawn(ctx, &cfg)
	if err != nil {
		return nil, err
	}
	if err := m.call(ctx, requests(&cfg)...); err != nil {
		return nil, errors.Join(fmt.Errorf("start Firecracker: %w", err), m.Close())
	}
	return m, nil
}

// spawn starts a Firecracker that has been told nothing yet.
func (d *Driver) spawn(ctx context.Context, cfg *vmm.Config) (*machine, error) {
	if d.program == "" {
		return nil, fmt.Errorf("%w: firecracker is not installed: %s", vmm.ErrUnavailable, remedyInstall)
	}
	if err := check(cfg); err != nil {
		return nil, err
	}
	// Firecracker does not start over a socket that an earlier one has left.
	if err := removeSockets(cfg.Dir); err != nil {
		return nil, err
	}
	launcher := cfg.Launcher
	if launcher == nil {
		launcher = launch.Direct{}
	}
	proc, err := launcher.Launch(ctx, vmm.Command{
		Path: d.program, Args: args(cfg), Dir: cfg.Dir,
		Env: []string{"PATH=/usr/bin:/bin"}, Stdout: cfg.Console, Stderr: cfg.VMMLog,
	})
	if err != nil {
		return nil, err
	}
	child := vmm.WatchChild(name, proc, cfg.Console.Name(), cfg.VMMLog.Name())
	agent := vsocklink.NewHost(func(ctx context.Context) (net.Conn, error) { return dialVsock(ctx, cfg.Dir, vmm.AgentPort) })
	go func() {
		<-child.Done()
		agent.Ended()
	}()
	return &machine{
		Child: child, dir: cfg.Dir, memory: int64(cfg.MemoryMiB) << 20, api: newAPIClient(cfg.Dir, child.Done()), agent: agent,
	}, nil
}

// Dial implements vmm.Machine.
func (m *machine) Dial(ctx context.Context) (net.Conn, error) {
	if err := m.Err(); err != nil {
		return nil, err
	}
	return m.agent.Dial(ctx)
}

// Pause implements vmm.Machine.
func (m *machine) Pause(ctx context.Context) error {
	return m.call(ctx, patch("/vm", vmState{State: "Paused"}))
}

// Resume implements vmm.Machine.
func (m *machine) Resume(ctx context.Context) error {
	err := m.call(ctx, m.resume())
	if err == nil && m.saved.Swap(false) {
		m.agent.Resumed()
	}
	return err
}

// resume is the request to go on. Firecracker answers it only after one to save
// the machine, which it carries out though nobody waits for it any more.
func (m *machine) resume() request {
	r := patch("/vm", vmState{State: "Resumed"})
	if m.saved.Load() {
		r.limit = snapshotTimeout
	}
	return r
}

// SetBalloon implements vmm.Ballooner.
func (m *machine) SetBalloon(ctx context.Context, mib int) error {
	return m.call(ctx, patch("/balloon", balloonUpdate{MiB: mib}))
}

// SetMetadata implements vmm.MetadataSetter.
func (m *machine) SetMetadata(ctx context.Context, object json.RawMessage) error {
	if len(object) > vmm.MaxMetadata {
		return fmt.Errorf("%w: %d bytes, the limit is %d", errMetadata, len(object), vmm.MaxMetadata)
	}
	return m.call(ctx, put("/mmds", object))
}

// call sends requests to a machine that may have ended.
func (m *machine) call(ctx context.Context, rs ...request) error {
	err := m.api.do(ctx, rs...)
	if errors.Is(err, vmm.ErrExited) || isHangup(err) {
		err = m.Cause(ctx, err)
	}
	return err
}

// Close implements vmm.Machine.
func (m *machine) Close() error {
	m.closeOnce.Do(func() {
		err := m.Kill(context.Background())
		m.api.close()
		m.agent.Close()
		m.base.forget()
		m.closeErr = errors.Join(err, removeSockets(m.dir))
	})
	return m.closeErr
}

// removeSockets removes what Firecracker leaves in its directory.
func removeSockets(dir string) error {
	for _, n := range []string{apiSocket, paths.VsockName} {
		if err := os.Remove(filepath.Join(dir, n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove Firecracker's socket: %w", err)
		}
	}
	return nil
}
