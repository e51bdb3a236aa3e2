package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/fcvm/fcvm/internal/agentclient"
	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/supervisor"
	"github.com/fcvm/fcvm/internal/term"
	"github.com/fcvm/fcvm/internal/vm"
)

// errNoTTY is said in the words that Docker's users know.
var errNoTTY = errors.New("the input device is not a TTY; leave out -t, or run fcvm from a terminal")

// consoleOptions say what a process in a guest is given of this one.
type consoleOptions struct {
	interactive bool // stdin
	tty         bool // a terminal of the same size
	quiet       bool // no progress
	verbose     bool
}

// console joins one run to the streams of this process: progress until the
// container runs, then the container's output, and with -it its terminal.
type console struct {
	stdio    supervisor.Stdio
	reporter progress.Reporter
	verbose  func(line string) // nil without --verbose

	tty       *term.Terminal // whose size the container's has; nil: none
	raw       *term.Terminal // to be put into raw mode; nil: none
	endReport func()

	mu      sync.Mutex
	closed  bool
	restore func() error // takes raw mode back; nil: not raw
	stop    context.CancelFunc
}

func openConsole(sys System, o consoleOptions) (*console, error) {
	ctx, cancel := context.WithCancel(context.Background())
	c := &console{stdio: supervisor.Stdio{Out: sys.Stdout, Err: sys.Stderr}, stop: cancel}
	if o.interactive {
		c.stdio.In = sys.Stdin
	}
	if o.tty {
		if err := c.openTerminal(ctx, sys, o.interactive); err != nil {
			cancel()
			return nil, err
		}
	}
	c.reporter, c.endReport = runReporter(sys.Stderr, o)
	if o.verbose {
		c.verbose = func(line string) { c.reporter.Note("fcvm: " + line) }
	}
	return c, nil
}

// openTerminal finds the terminal whose size the container is to have. It is
// put into raw mode only when the container gets its keys; without -i Ctrl-C
// stays a signal.
func (c *console) openTerminal(ctx context.Context, sys System, interactive bool) error {
	t, ok := term.Of(sys.Stdin)
	if interactive {
		if !ok {
			return errNoTTY
		}
		c.raw = t
	} else if !ok {
		t, ok = term.Of(sys.Stdout)
	}
	if !ok {
		return nil
	}
	c.tty = t
	sizes := make(chan agentclient.Size, 1)
	c.stdio.Resize = sizes
	go t.Watch(ctx, func(s term.Size) {
		select {
		case <-sizes: // one that nobody has taken yet is of no use any more
		default:
		}
		sizes <- agentclient.Size(s)
	})
	return nil
}

// size is that of the terminal now; zero where there is none.
func (c *console) size() agentclient.Size {
	if c.tty == nil {
		return agentclient.Size{}
	}
	s, err := c.tty.Size()
	if err != nil {
		return agentclient.Size{} // the guest has a size of its own
	}
	return agentclient.Size(s)
}

// started is called when the container runs: from here on the terminal is its.
func (c *console) started() {
	c.endReport()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.raw == nil || c.closed || c.restore != nil {
		return
	}
	// A terminal that cannot be raw still works line by line.
	if restore, err := c.raw.Raw(); err == nil {
		c.restore = restore
	}
}

// close gives the terminal back as it was. It may be called many times.
func (c *console) close() {
	c.endReport()
	c.stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.restore != nil {
		_ = c.restore() // a terminal that is gone needs none
	}
}

// runReporter shows progress on a terminal, and leaves nothing of it. Away
// from a terminal a run says nothing but what --verbose asks for.
func runReporter(stderr io.Writer, o consoleOptions) (rep progress.Reporter, end func()) {
	t, ok := term.Of(stderr)
	switch {
	case o.quiet:
		return progress.Discard, func() {}
	case ok:
		r := progress.NewTerminal(stderr, progress.TerminalOptions{Size: sizeOf(t)})
		return r, r.Close
	case o.verbose:
		return progress.NewPlain(stderr), func() {}
	}
	return progress.Discard, func() {}
}

// withProgress runs f with progress that stays: one line per finished step.
func (a *app) withProgress(quiet bool, f func(progress.Reporter) error) error {
	if quiet {
		return f(progress.Discard)
	}
	t, ok := term.Of(a.sys.Stderr)
	if !ok {
		return f(progress.NewPlain(a.sys.Stderr))
	}
	r := progress.NewTerminal(a.sys.Stderr, progress.TerminalOptions{Keep: true, Size: sizeOf(t)})
	defer r.Close()
	return f(r)
}

func sizeOf(t *term.Terminal) func() (rows, cols int) {
	return func() (int, int) {
		s, err := t.Size()
		if err != nil {
			return 0, 0 // the reporter has defaults
		}
		return int(s.Rows), int(s.Cols)
	}
}

// printTimings writes how long each phase took.
func printTimings(w io.Writer, phases []vm.Phase) {
	if len(phases) == 0 {
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	var total time.Duration
	_, _ = fmt.Fprintln(t, "PHASE\tTIME")
	for _, p := range phases {
		total += p.Duration
		_, _ = fmt.Fprintf(t, "%s\t%s\n", p.Name, formatPhase(p.Duration))
	}
	_, _ = fmt.Fprintf(t, "total\t%s\n", formatPhase(total))
	_ = t.Flush()
}

func formatPhase(d time.Duration) string {
	return d.Round(time.Millisecond).String()
}
