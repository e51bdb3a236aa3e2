package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/vmm"
)

// maxAnswer bounds the line "OK <port>\n", bytes.
const maxAnswer = 32

var (
	// errRefused: nobody listens on that port in the guest (yet).
	errRefused = errors.New("the guest does not accept the connection")
	errAnswer  = errors.New("unexpected answer to CONNECT")
)

// dialVsock opens a connection to a port in the guest, through the socket in
// dir that Firecracker makes of the guest's vsock device:
// https://github.com/firecracker-microvm/firecracker/blob/main/docs/vsock.md
// Firecracker gives up a guest that does not answer after two seconds.
func dialVsock(ctx context.Context, dir string, port uint32) (net.Conn, error) {
	c, err := vmm.DialIn(ctx, dir, paths.VsockName)
	if err != nil {
		return nil, err
	}
	if err := handshake(ctx, c, port); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("connect to port %d in the guest: %w", port, err)
	}
	return c, nil
}

func handshake(ctx context.Context, c net.Conn, port uint32) error {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	err := connect(c, port)
	if !stop() {
		return context.Cause(ctx) // the deadline stays, the connection is of no use
	}
	return err
}

func connect(c net.Conn, port uint32) error {
	if _, err := fmt.Fprintf(c, "CONNECT %d\n", port); err != nil {
		return refused(err)
	}
	line, err := readLine(c)
	if err != nil {
		return refused(err)
	}
	// The number is the host's end of the connection.
	n, ok := strings.CutPrefix(line, "OK ")
	if _, err := strconv.ParseUint(n, 10, 32); !ok || err != nil {
		return fmt.Errorf("%w: %q", errAnswer, line)
	}
	return nil
}

// readLine reads byte by byte: what follows the line is the agent's.
func readLine(r io.Reader) (string, error) {
	var line []byte
	b := make([]byte, 1)
	for len(line) < maxAnswer {
		if _, err := io.ReadFull(r, b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return string(line), nil
		}
		line = append(line, b[0])
	}
	return "", fmt.Errorf("%w: %q…", errAnswer, line)
}

// refused gives the end of a connection its meaning here.
func refused(err error) error {
	if isHangup(err) {
		return errRefused
	}
	return err
}

// isHangup reports whether the peer closed a connection.
func isHangup(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}
