package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fcvm/fcvm/internal/serialmux"
	"github.com/fcvm/fcvm/internal/vmm"
)

// agentSocket is the host's end of a restored guest's agent channel, in the
// VM's directory.
const agentSocket = "agent.sock"

const (
	// hangupPause is the time between two looks at whether the guest has closed
	// its port.
	hangupPause = time.Millisecond
	// hangupLimit is how long a guest is given to do so. One that is well takes
	// milliseconds.
	hangupLimit = 10 * time.Second
)

var errNotResumed = errors.New("the guest was restored, and does not run yet")

// agentPort is the host's end of the port that the guest's agent listens on.
//
// In the memory of a guest that is restored, the agent has a session with a
// host that is not this one. So the port's other end is not connected while the
// state is loaded: QEMU tells the guest that its host hung up, and the agent
// closes the port and opens it again. Only when it has closed it does this end
// connect. Were the port connected before, the guest could be told both at
// once, see nothing, and go on with the old session.
type agentPort struct {
	start sync.Once
	runs  atomic.Bool     // it was booted, or resumed
	ctx   context.Context // until close
	stop  context.CancelFunc

	once  sync.Once
	ready chan struct{} // closed when host and err are set
	host  *serialmux.Host
	err   error
}

func newAgentPort() *agentPort {
	p := &agentPort{ready: make(chan struct{})}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p
}

// started reports whether the guest has run. One that has not does not know yet
// that its host hung up, and its state does not say so.
func (p *agentPort) started() bool { return p.runs.Load() }

// booted is for a machine whose port was connected from the start.
func (p *agentPort) booted(h *serialmux.Host) {
	p.runs.Store(true)
	p.connected(h, nil)
}

// connected ends the wait of dial.
func (p *agentPort) connected(h *serialmux.Host, err error) {
	used := false
	p.once.Do(func() {
		p.host, p.err, used = h, err, true
		close(p.ready)
	})
	if !used && h != nil {
		_ = h.Close()
	}
}

// hungUp says that the guest has closed the port.
func (p *agentPort) hungUp() {
	select {
	case <-p.ready:
		if p.host != nil {
			p.host.HungUp()
		}
	default: // nobody has connected it yet
	}
}

// dial opens a connection to the agent.
func (p *agentPort) dial(ctx context.Context) (net.Conn, error) {
	if !p.started() {
		return nil, errNotResumed
	}
	select {
	case <-p.ready:
	case <-ctx.Done():
		return nil, fmt.Errorf("open connection to the agent: %w", context.Cause(ctx))
	}
	if p.err != nil {
		return nil, p.err
	}
	return p.host.Dial(ctx)
}

// resumed connects the port of a machine that was restored and runs now.
func (p *agentPort) resumed(m *machine) {
	p.start.Do(func() {
		if p.runs.Swap(true) {
			return // it was booted
		}
		go func() {
			ctx, cancel := context.WithCancel(p.ctx)
			defer cancel()
			go func() {
				select {
				case <-m.Done():
					cancel()
				case <-ctx.Done():
				}
			}()
			h, err := connectAgent(ctx, m)
			if ended := m.Err(); ended != nil {
				err = ended
			}
			p.connected(h, err)
		}()
	})
}

// connectAgent connects the port once the guest has closed it, and waits until
// the guest has opened it again.
func connectAgent(ctx context.Context, m *machine) (*serialmux.Host, error) {
	if err := waitHangup(ctx, m.mon); err != nil {
		return nil, err
	}
	conn, err := vmm.DialIn(ctx, m.dir, agentSocket)
	if err != nil {
		return nil, err
	}
	h, err := serialmux.NewHost(conn)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	if err := h.Greet(ctx); err != nil {
		_ = h.Close()
		return nil, err
	}
	return h, nil
}

// waitHangup waits until the guest has closed the agent's port, for a while: a
// guest that does not is no worse off when the port is connected.
//
// QEMU tells the guest of the hang-up from a timer that is due at once when its
// clock goes on, that is, before it answers the command after "cont".
func waitHangup(ctx context.Context, mon *qmp) error {
	for deadline := time.Now().Add(hangupLimit); time.Now().Before(deadline); {
		var devices []struct {
			Label string `json:"label"`
			Open  bool   `json:"frontend-open"`
		}
		if err := mon.execute(ctx, "query-chardev", nil, &devices); err != nil {
			return err
		}
		open := false
		for _, d := range devices {
			open = open || (d.Label == "agent" && d.Open)
		}
		if !open {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(hangupPause):
		}
	}
	return nil
}

func (p *agentPort) close() {
	p.stop()
	p.connected(nil, net.ErrClosed)
	if p.host != nil {
		_ = p.host.Close()
	}
}

// removeAgentSocket removes what a QEMU that was killed leaves.
func removeAgentSocket(dir string) error {
	if err := os.Remove(filepath.Join(dir, agentSocket)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove QEMU's socket: %w", err)
	}
	return nil
}
