package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// still is a source of one table.
type still string

func (still) look(context.Context) error          { return nil }
func (still) sort(topOrder, bool)                 {}
func (s still) table(w io.Writer) error           { _, err := fmt.Fprintln(w, string(s)); return err }
func (s still) write(w io.Writer, _ format) error { return s.table(w) }

// Who stops top (Ctrl-Z) has a terminal to go on with, and top its own again.
func TestTopGivesTheTerminalBackWhileItIsStopped(t *testing.T) {
	m := newTerminal(t)
	cooked := m.lflag()
	stopped := ""
	s := &topScreen{
		app: newApp(System{Stdin: m.tty, Stdout: m.tty}), source: still("TABLE"), interval: time.Hour,
		suspend: func() {
			m.waitFor("the screen to be left", func() bool { return strings.HasSuffix(m.output(), screenClose) })
			if m.lflag() != cooked {
				t.Error("the terminal is not as it was")
			}
			stopped = m.output()
		},
	}
	ended := make(chan error, 1)
	go func() { ended <- s.run(t.Context(), false) }()
	m.waitFor("the table", func() bool { return strings.Contains(m.output(), "TABLE") })
	if out := m.output(); !strings.HasPrefix(out, screenOpen) || !strings.Contains(screenOpen, "\x1b[?7l") || !strings.Contains(screenClose, "\x1b[?7h") {
		t.Errorf("wide characters may wrap: %q", out)
	}
	if _, err := m.control.WriteString("\x1a"); err != nil {
		t.Fatal(err)
	}
	m.waitFor("the table again", func() bool {
		_, rest, _ := strings.Cut(m.output(), screenClose)
		return strings.Contains(rest, "TABLE")
	})
	if m.lflag() == cooked {
		t.Error("keys are not read as they are pressed any more")
	}
	if _, err := m.control.WriteString("q"); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	m.waitFor("the end", func() bool { return strings.Count(m.output(), screenClose) == 2 })
	if rest, ok := strings.CutPrefix(m.output(), stopped); !ok || !strings.HasPrefix(rest, screenOpen) {
		t.Errorf("it goes on with %q", rest)
	}
	if _, err := m.control.WriteString("\n"); err != nil { // for who waits for a key
		t.Error(err)
	}
	if m.lflag() != cooked {
		t.Error("at the end the terminal is not as it was")
	}
}
