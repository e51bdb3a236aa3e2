package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fcvm/fcvm/internal/memserver"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/vmm"
)

// Memory says where a clone's memory comes from.
type Memory string

// The ways of clone --memory.
const (
	MemoryAuto   Memory = "auto"   // from the snapshot's memory server, if one runs and the VMM can, else from the file
	MemoryFile   Memory = "file"   // the snapshot's file, mapped privately
	MemoryServer Memory = "server" // from the snapshot's memory server
)

// endReason is how long the server of a VM's memory may take to say why the VM
// has ended: it says so before it ends it.
const endReason = time.Second

// restoreFrom is where the guest's memory and state come from. With a memory server,
// the link to it is opened and watched.
func (in *instance) restoreFrom(ctx context.Context) (vmm.RestoreFrom, error) {
	from := vmm.RestoreFrom{State: in.from.State(), Phase: in.timer.phase}
	socket, err := in.openPages(ctx)
	if err != nil {
		return from, err
	}
	if socket == "" {
		from.Memory = in.from.Memory()
		from.TrackDirty = in.Clone != nil && in.Clone.TrackDirty
	} else {
		from.PageServer = socket
	}
	return from, nil
}

// wantsServer reports whether the memory of a clone comes from the snapshot's server
// if one runs (may), and whether from nowhere else (must). It refuses what cannot be.
func (l *life) wantsServer() (may, must bool, err error) {
	m := &l.Clone.Snapshot.Manifest
	must = m.Needs.HugePages || l.Clone.Memory == MemoryServer
	switch {
	case l.Clone.Memory == MemoryFile && m.Needs.HugePages:
		return false, false, fmt.Errorf("%w: --memory file: a guest on huge pages cannot map snapshot %s; use --memory server", vm.ErrInvalid, m.Title())
	case l.Clone.Memory == MemoryFile:
		return false, false, nil
	case l.driver.Capabilities().PageServer:
		return true, must, nil
	case must:
		return false, false, fmt.Errorf("%w: --memory server with %s: it maps the snapshot's file (--memory file)", vmm.ErrUnsupported, l.driver.Name())
	}
	return false, false, nil
}

// withoutServer is what it means that the snapshot's memory server cannot be reached.
func withoutServer(m *snapshot.Manifest, err error) error {
	if errors.Is(err, memserver.ErrGone) {
		return fmt.Errorf("%w: --memory server: none runs for snapshot %s; start it with: fcvm memory-server -d %s", vm.ErrInvalid, m.Title(), m.Title())
	}
	return fmt.Errorf("reach the memory server of snapshot %s: %w", m.Title(), err)
}

// checkMemory refuses a clone that cannot have its memory from where it was asked to,
// before anything is made for it.
func (l *life) checkMemory(ctx context.Context) error {
	_, must, err := l.wantsServer()
	if err != nil || !must {
		return err
	}
	m := &l.Clone.Snapshot.Manifest
	socket, err := l.Store.Layout().MemorySocket(m.ID)
	if err == nil {
		_, err = memserver.Query(ctx, socket)
	}
	if err != nil {
		return withoutServer(m, err)
	}
	return nil
}

// openPages opens the link to the snapshot's memory server, and returns its
// socket; empty: the file is to be mapped.
func (in *instance) openPages(ctx context.Context) (string, error) {
	if in.Clone == nil {
		return "", nil
	}
	may, must, err := in.wantsServer()
	if err != nil || !may {
		return "", err
	}
	socket, err := in.Store.Layout().MemorySocket(in.from.Manifest.ID)
	if err == nil {
		in.pages, err = memserver.OpenLink(ctx, socket, in.vm.Record().ID)
	}
	if errors.Is(err, memserver.ErrGone) && !must {
		return "", nil
	}
	if err != nil {
		return "", withoutServer(&in.from.Manifest, err)
	}
	in.undo.add("leave the memory server", func(context.Context) error { return in.pages.Close() })
	in.Verbose("memory from the server at " + socket)
	return socket, nil
}

// withPages is a context that ends with the server of the VM's memory: a VMM
// that loads a snapshot touches its memory, and could wait for ever.
func (in *instance) withPages(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	if in.pages != nil {
		go func() {
			select {
			case <-in.pages.Done():
				cancel(in.pages.Err())
			case <-ctx.Done():
			}
		}()
	}
	return ctx, func() { cancel(nil) }
}

// watchPages ends the VM when it can have no more of its memory: without that it
// would wait for ever.
func (in *instance) watchPages() error {
	if in.pages == nil {
		return nil
	}
	if err := in.pages.Attach(in.machine.PID()); err != nil {
		return in.pagesError(err)
	}
	go func() {
		<-in.pages.Done()
		select {
		case <-in.gone.done: // it has ended, and the link with it
		default:
			in.fail(in.pages.Err())
		}
	}()
	return nil
}

// pagesError is why a VM that has its memory from a server failed: what the server has
// to say of it, if it says something, is a better reason than a VMM that was killed.
func (in *instance) pagesError(err error) error {
	if in.pages == nil {
		return err
	}
	select {
	case <-in.pages.Done():
		return in.pages.Err()
	case <-time.After(endReason):
		return err
	}
}
