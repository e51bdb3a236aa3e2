package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/term"
)

// What a terminal is told (ECMA-48, and xterm's alternate screen).
const (
	screenOpen  = "\x1b[?1049h\x1b[?25l\x1b[?7l" // another screen, no cursor, no lines that wrap: some characters are wide
	screenClose = "\x1b[?7h\x1b[?25h\x1b[?1049l"
	screenHome  = "\x1b[H"
	lineEnd     = "\x1b[K\r\n"
	screenRest  = "\x1b[J"
)

// terminal is the one to draw on, if there is one.
func (s *topScreen) terminal() (*term.Terminal, bool) {
	t, ok := term.Of(s.sys.Stdout)
	return t, ok && s.format.plain()
}

// takeTerminal takes the terminal over, until giveBack. Without one to read keys
// from, it only draws.
func (s *topScreen) takeTerminal() (giveBack func() error) {
	keys := func() error { return nil }
	if in, ok := term.Of(s.sys.Stdin); ok {
		if r, err := in.Keys(); err == nil {
			keys = r
		}
	}
	_, _ = io.WriteString(s.sys.Stdout, screenOpen)
	return func() error {
		_, _ = io.WriteString(s.sys.Stdout, screenClose)
		return keys()
	}
}

// live redraws the table until the context ends or a key says so.
func (s *topScreen) live(ctx context.Context, t *term.Terminal) (err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	giveBack := s.takeTerminal()
	defer func() { err = errors.Join(err, giveBack()) }()
	keys := make(chan byte)
	if _, ok := term.Of(s.sys.Stdin); ok {
		go readKeys(ctx, s.sys.Stdin, keys)
	}
	resized := make(chan struct{}, 1)
	go t.Watch(ctx, func(term.Size) {
		select {
		case resized <- struct{}{}:
		default:
		}
	})
	tick := time.NewTicker(s.interval)
	defer tick.Stop()
	for {
		if err := s.draw(t); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-resized:
		case k := <-keys:
			switch k {
			case 'q':
				return nil
			case ctrlZ:
				if err := giveBack(); err != nil {
					return err
				}
				s.suspend()
				giveBack = s.takeTerminal()
			}
			s.press(k)
		case <-tick.C:
			if err := s.source.look(ctx); err != nil {
				return err
			}
		}
	}
}

const ctrlZ = 0x1a

// stopTime is how long a process may take to stop, of which the kernel asks one
// thread after the other.
const stopTime = 200 * time.Millisecond

// suspendSelf stops this process, and those that were started with it, as the
// terminal would, and returns when somebody has let them go on. The kernel leaves
// them alone where there is nobody to do so.
func suspendSelf() {
	goesOn := make(chan os.Signal, 1)
	signal.Notify(goesOn, unix.SIGCONT)
	defer signal.Stop(goesOn)
	_ = unix.Kill(0, unix.SIGTSTP)
	select { // until then the terminal is not to be touched
	case <-goesOn:
	case <-time.After(stopTime):
	}
}

// readKeys hands on what is typed. It stays behind in its last read, until the
// process ends.
func readKeys(ctx context.Context, in io.Reader, keys chan<- byte) {
	var b [1]byte
	for {
		if n, err := in.Read(b[:]); err != nil || n == 0 {
			return
		}
		select {
		case keys <- b[0]:
		case <-ctx.Done():
			return
		}
	}
}

func (s *topScreen) press(key byte) {
	if key == 'r' {
		s.reverse = !s.reverse
	}
	if o, ok := findOrder(func(o topOrder) bool { return o.key == key }); ok {
		s.order = o
	}
}

// draw shows as much of the table as fits.
func (s *topScreen) draw(t *term.Terminal) error {
	s.source.sort(s.order, s.reverse)
	var table bytes.Buffer
	if err := s.source.table(&table); err != nil {
		return err
	}
	rows, cols := sizeOf(t)()
	if rows <= 0 || cols <= 0 {
		rows, cols = 24, 80
	}
	var b strings.Builder
	b.WriteString(screenHome)
	n := 0
	for line := range strings.Lines(table.String()) {
		if n++; n >= rows {
			break
		}
		r := []rune(strings.TrimRight(line, "\n"))
		b.WriteString(string(r[:min(len(r), cols)]) + lineEnd)
	}
	b.WriteString(screenRest)
	_, err := io.WriteString(s.sys.Stdout, b.String())
	return err
}
