package memserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// peer is the process at the other end of a connection, held by a descriptor:
// its number cannot come to mean another.
type peer struct {
	pid int
	f   *os.File // a pidfd
}

// peerOf takes the process that has connected.
func peerOf(c *net.UnixConn) (*peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	fd := -1
	ctlErr := raw.Control(func(s uintptr) {
		if cred, err = unix.GetsockoptUcred(int(s), unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil {
			return
		}
		// Linux 6.5. Before, a process may have taken the place of one that has
		// connected and ended since.
		if fd, err = unix.GetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_PEERPIDFD); err != nil {
			fd, err = unix.PidfdOpen(int(cred.Pid), 0)
		}
	})
	if err = errors.Join(ctlErr, err); err != nil {
		return nil, fmt.Errorf("find out who has connected: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // for the runtime's poller
		_ = unix.Close(fd)
		return nil, fmt.Errorf("watch process %d: %w", cred.Pid, err)
	}
	return &peer{pid: int(cred.Pid), f: os.NewFile(uintptr(fd), "pidfd")}, nil
}

// wait returns when the process has ended, or with the cause of ctx's end.
func (p *peer) wait(ctx context.Context) error {
	raw, err := p.f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var pollErr error
	err = raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		var n int
		n, pollErr = unix.Poll(fds, 0)
		if errors.Is(pollErr, unix.EINTR) {
			pollErr = nil
			return false
		}
		return n > 0 || pollErr != nil
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return context.Cause(ctx)
	}
	if err = errors.Join(err, pollErr); err != nil {
		return fmt.Errorf("watch process %d: %w", p.pid, err)
	}
	return nil
}

// kill ends the process, if it still runs.
func (p *peer) kill() error {
	raw, err := p.f.SyscallConn()
	if err != nil {
		return err
	}
	ctlErr := raw.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	if errors.Is(err, unix.ESRCH) {
		err = nil
	}
	if err = errors.Join(ctlErr, err); err != nil {
		return fmt.Errorf("kill process %d: %w", p.pid, err)
	}
	return nil
}

func (p *peer) close() error { return p.f.Close() }
