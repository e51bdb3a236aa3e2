// Package term is what fcvm needs of a terminal: whether a stream is one, its
// size and the changes of it, and raw mode that is always taken back.
package term

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
	xterm "golang.org/x/term"
)

// Size of a terminal, in characters.
type Size struct{ Rows, Cols uint16 }

// Terminal is a terminal device that some stream is joined to.
type Terminal struct{ fd int }

// Of returns the terminal behind a stream (an io.Reader or io.Writer), or
// false when the stream is something else.
func Of(stream any) (*Terminal, bool) {
	f, ok := stream.(*os.File)
	if !ok || f == nil {
		return nil, false
	}
	fd := int(f.Fd())
	if !xterm.IsTerminal(fd) {
		return nil, false
	}
	return &Terminal{fd: fd}, true
}

// Size asks for the size as it is now.
func (t *Terminal) Size() (Size, error) {
	ws, err := unix.IoctlGetWinsize(t.fd, unix.TIOCGWINSZ)
	if err != nil {
		return Size{}, fmt.Errorf("ask for the terminal's size: %w", err)
	}
	return Size{Rows: ws.Row, Cols: ws.Col}, nil
}

// Watch calls f with the size at once, and again whenever it changes, until
// ctx ends. A terminal that does not know its size (0 rows or columns) is
// silent.
func (t *Terminal) Watch(ctx context.Context, f func(Size)) {
	changes := make(chan os.Signal, 1)
	signal.Notify(changes, unix.SIGWINCH)
	defer signal.Stop(changes)
	var last Size
	for {
		if s, err := t.Size(); err == nil && s != last && s.Rows > 0 && s.Cols > 0 {
			last = s
			f(s)
		}
		select {
		case <-changes:
		case <-ctx.Done():
			return
		}
	}
}

// Keys has each key read as it is pressed, without echo; those that send signals
// still do, but for Ctrl-Z: who draws has to give the terminal back first. restore
// may be called many times.
func (t *Terminal) Keys() (restore func() error, err error) {
	old, err := unix.IoctlGetTermios(t.fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("set the terminal up for keys: %w", err)
	}
	keys := *old
	keys.Lflag &^= unix.ICANON | unix.ECHO
	keys.Cc[unix.VMIN], keys.Cc[unix.VTIME] = 1, 0
	keys.Cc[unix.VSUSP] = 0 // _POSIX_VDISABLE
	if err := unix.IoctlSetTermios(t.fd, unix.TCSETS, &keys); err != nil {
		return nil, fmt.Errorf("set the terminal up for keys: %w", err)
	}
	return sync.OnceValue(func() error {
		if err := unix.IoctlSetTermios(t.fd, unix.TCSETS, old); err != nil {
			return fmt.Errorf("restore the terminal: %w", err)
		}
		return nil
	}), nil
}

// Raw puts the terminal into raw mode: every key is a byte, Ctrl-C too, and
// nothing is echoed. restore may be called many times.
func (t *Terminal) Raw() (restore func() error, err error) {
	old, err := xterm.MakeRaw(t.fd)
	if err != nil {
		return nil, fmt.Errorf("put the terminal into raw mode: %w", err)
	}
	return sync.OnceValue(func() error {
		if err := xterm.Restore(t.fd, old); err != nil {
			return fmt.Errorf("restore the terminal: %w", err)
		}
		return nil
	}), nil
}
