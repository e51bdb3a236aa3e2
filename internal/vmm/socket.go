package vmm

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"
)

// DialIn connects to the Unix socket name in dir. The path goes through a
// descriptor of the directory, so that its length does not count against the
// limit of socket addresses (108 bytes, unix(7)).
func DialIn(ctx context.Context, dir, name string) (*net.UnixConn, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	var nd net.Dialer
	c, err := nd.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name))
	if err != nil {
		return nil, fmt.Errorf("connect to %s/%s: %w", dir, name, err)
	}
	return c.(*net.UnixConn), nil
}

// DialSoon is DialIn for a socket that a process is about to make; it gives
// up when ctx or the process (done) ends.
func DialSoon(ctx context.Context, done <-chan struct{}, dir, name string) (*net.UnixConn, error) {
	for {
		c, err := DialIn(ctx, dir, name)
		if err == nil {
			return c, nil
		}
		select {
		case <-done:
			return nil, ErrExited
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(time.Millisecond):
		}
	}
}
