package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/launch"
)

// Namespace is a network namespace that this process holds open, and that has
// no name. It goes with this process and those that were launched in it. Only
// root can make one; others have Launch.
type Namespace struct{ file *os.File }

// threadNS is the network namespace of the calling thread: threads of one
// process may be in several.
const threadNS = "/proc/thread-self/ns/net"

// New makes an empty namespace.
func New() (*Namespace, error) {
	var n *Namespace
	err := onThread(func() error { return os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWNET)) }, func() error {
		f, err := os.Open(threadNS)
		n = &Namespace{f}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNamespace, err)
	}
	return n, nil
}

// onThread calls enter, which moves its thread into a namespace, and then do
// on the same thread, which returns to where it was.
func onThread(enter, do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		own, err := os.Open(threadNS)
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer func() { _ = own.Close() }()
		if err = enter(); err == nil {
			err = do()
		}
		if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
			// The thread ends with this goroutine, and is of no further use.
			done <- errors.Join(err, os.NewSyscallError("setns", back))
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

func (n *Namespace) enter() error {
	return os.NewSyscallError("setns", unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET))
}

// Do calls f on a thread inside of the namespace. What f opens there stays
// there; goroutines that it starts are outside.
func (n *Namespace) Do(f func() error) error { return onThread(n.enter, f) }

// Fd is the namespace's descriptor, valid until Close.
func (n *Namespace) Fd() int { return int(n.file.Fd()) }

// Close lets go of the namespace.
func (n *Namespace) Close() error { return n.file.Close() }

// Launch implements vmm.Launcher: the process starts inside of the namespace.
func (n *Namespace) Launch(ctx context.Context, c vmm.Command) (vmm.Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	by := func(start func() error) error {
		own, err := os.Open(threadNS)
		if err != nil {
			return err
		}
		defer func() { _ = own.Close() }()
		if err := n.enter(); err != nil {
			return err
		}
		err = start()
		return errors.Join(err, os.NewSyscallError("setns", unix.Setns(int(own.Fd()), unix.CLONE_NEWNET)))
	}
	p, err := launch.StartBy(launch.Cmd(c), launch.Attr(c), c.Seccomp, by)
	if err != nil {
		return nil, fmt.Errorf("start the VMM in a network namespace: %w", err)
	}
	return p, nil
}

// AddTap makes the tap that a VMM is to open, owned by this process's user.
// It is called inside of a namespace.
func AddTap(name string) error { return persistentTap(name) }
