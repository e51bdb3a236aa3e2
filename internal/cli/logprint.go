package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/fcvm/fcvm/internal/logs"
	"github.com/fcvm/fcvm/internal/term"
)

// maxTailPiece bounds what counts as one line of --tail, bytes.
const maxTailPiece = 64 << 10

// logPrinter writes a log's entries to stdout and stderr.
type logPrinter struct {
	*app
	timestamps bool
	midLine    map[logs.Stream]bool // what was written last has no end yet
}

// print writes the range of the log that is wanted.
func (p *logPrinter) print(ctx context.Context, r *logs.Reader, want logRange, follow bool, alive func() bool) error {
	p.midLine = map[logs.Stream]bool{}
	if follow && !want.until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, want.until)
		defer cancel()
	}
	wanted := func(e logs.Entry) bool {
		return !e.Time.Before(want.since) && (want.until.IsZero() || !e.Time.After(want.until))
	}
	first := p.entry
	var tail *lineTail
	if want.tail != allLines {
		tail = newLineTail(want.tail)
		first = tail.add
	}
	pass := func(to func(logs.Entry) error) func(logs.Entry) error {
		return func(e logs.Entry) error {
			if err := ctx.Err(); err != nil && !follow {
				return context.Cause(ctx)
			}
			if !wanted(e) {
				return nil
			}
			return to(e)
		}
	}
	lives := follow && alive() // asked before the look: what it misses is of one that lives
	if err := r.Read(pass(first)); err != nil {
		return err
	}
	if tail != nil {
		if err := tail.flush(p.entry); err != nil {
			return err
		}
	}
	if !want.since.After(time.Now()) {
		want.since = time.Time{} // what comes from here on is new, whatever a clock says that was set back
	}
	for lives {
		lives = waitForMore(ctx) && alive()
		if err := interrupted(ctx); err != nil {
			return err
		}
		// Also when the time of --until has come: for what was written by then.
		if err := r.Read(pass(p.entry)); err != nil {
			return err
		}
	}
	return interrupted(ctx)
}

// entry writes one entry to the stream that it came from.
func (p *logPrinter) entry(e logs.Entry) error {
	if e.Lost == logs.LostUnread {
		_, err := fmt.Fprintln(p.sys.Stderr, "fcvm: output is missing here: the log was full before it was read")
		return err
	}
	if e.Lost > 0 {
		_, err := fmt.Fprintf(p.sys.Stderr, "fcvm: %d bytes of the output are missing here: they could not be written to the log\n", e.Lost)
		return err
	}
	w := p.sys.Stdout
	if e.Stream == logs.Stderr {
		w = p.sys.Stderr
	}
	if !p.timestamps {
		_, err := w.Write(e.Data)
		return err
	}
	var b bytes.Buffer
	for line := range bytes.Lines(e.Data) {
		if !p.midLine[e.Stream] {
			b.WriteString(e.Time.Local().Format("2006-01-02T15:04:05.000000000Z07:00") + " ")
		}
		b.Write(line)
		p.midLine[e.Stream] = line[len(line)-1] != '\n'
	}
	_, err := w.Write(b.Bytes())
	return err
}

// lineTail keeps the last lines of what is added to it, in the order in which
// they began. A log is bounded, and so is this.
type lineTail struct {
	n     int
	lines []*logs.Entry               // the last n, and those before that have not been dropped yet
	open  map[logs.Stream]*logs.Entry // those that have no end yet; they are in lines, too
}

func newLineTail(n int) *lineTail {
	return &lineTail{n: n, open: map[logs.Stream]*logs.Entry{}}
}

func (t *lineTail) add(e logs.Entry) error {
	if e.Lost != 0 {
		t.lines = append(t.lines, &e)
		return nil
	}
	for line := range bytes.Lines(e.Data) {
		last := t.open[e.Stream]
		if last == nil || len(last.Data)+len(line) > maxTailPiece {
			last = &logs.Entry{Time: e.Time, Stream: e.Stream}
			t.lines = append(t.lines, last)
		}
		last.Data = append(last.Data, line...)
		t.open[e.Stream] = last
		if line[len(line)-1] == '\n' {
			delete(t.open, e.Stream)
		}
	}
	const slack = 1000
	if len(t.lines) > t.n && len(t.lines)-t.n > slack {
		t.lines = append([]*logs.Entry(nil), t.lines[len(t.lines)-t.n:]...)
	}
	return nil
}

// flush hands the last lines on.
func (t *lineTail) flush(f func(logs.Entry) error) error {
	for _, e := range t.lines[max(0, len(t.lines)-t.n):] {
		if err := f(*e); err != nil {
			return err
		}
	}
	return nil
}

// printConsole writes the last lines of a guest's console, and what comes.
func (a *app) printConsole(ctx context.Context, path string, tail int, follow bool, alive func() bool) error {
	var f *os.File
	defer func() {
		if f != nil {
			_ = f.Close()
		}
	}()
	_, onTerminal := term.Of(a.sys.Stdout)
	for first := true; ; first = false {
		lives := follow && alive()
		if f == nil {
			opened, err := os.Open(path)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("read the console: %w", err)
			}
			if err == nil {
				f = opened
				if err := logs.SkipHole(f); err != nil {
					return fmt.Errorf("read the console: %w", err)
				}
			}
		}
		if f != nil {
			lines := allLines
			if first {
				lines = tail
			}
			if err := copyConsole(ctx, a.sys.Stdout, f, lines, onTerminal); err != nil {
				return err
			}
		}
		if !lives || !waitForMore(ctx) {
			return interrupted(ctx)
		}
	}
}

// copyConsole writes what is left of f, or the last lines of it. What a guest
// wrote does not steer a terminal of the host.
func copyConsole(ctx context.Context, w io.Writer, f *os.File, lines int, onTerminal bool) error {
	t := newLineTail(lines)
	buf := make([]byte, maxTailPiece)
	for start := true; ; {
		n, err := f.Read(buf)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("read the console: %w", err)
		}
		b := buf[:n]
		if start { // the rest of a hole
			b = bytes.TrimLeft(b, "\x00")
		}
		start = start && len(b) == 0
		if onTerminal {
			b = []byte(printable(strings.ReplaceAll(string(b), "\r", "")))
		}
		if lines == allLines {
			if _, err := w.Write(b); err != nil {
				return err
			}
			continue
		}
		_ = t.add(logs.Entry{Time: time.Time{}, Stream: logs.Stdout, Data: b})
	}
	return t.flush(func(e logs.Entry) error {
		_, err := w.Write(e.Data)
		return err
	})
}
