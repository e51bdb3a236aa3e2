package progress

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// Plain prints one line per finished step: for logs, pipes and CI.
type Plain struct {
	mu  sync.Mutex
	w   io.Writer
	now func() time.Time
}

// NewPlain returns a reporter that writes to w. Each line is one Write.
func NewPlain(w io.Writer) *Plain { return &Plain{w: w, now: time.Now} }

// Task implements Reporter.
func (p *Plain) Task(name string, _ int64) Task {
	return &plainTask{p: p, name: clean(name), start: p.now()}
}

// Note implements Reporter.
func (p *Plain) Note(line string) { p.print(clean(line)) }

// print ignores errors: nobody is left to tell them to.
func (p *Plain) print(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = io.WriteString(p.w, line+"\n")
}

type plainTask struct {
	p     *Plain
	name  string
	start time.Time

	mu    sync.Mutex
	bytes int64
}

func (t *plainTask) Add(n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bytes += n
}

func (t *plainTask) Done(err error) {
	t.mu.Lock()
	bytes := t.bytes
	t.mu.Unlock()
	t.p.print(summary(t.name, bytes, t.p.now().Sub(t.start), err))
}

// summary is the line that a finished step leaves. Why it failed is said once,
// by whoever ends the command.
func summary(name string, bytes int64, took time.Duration, err error) string {
	if err != nil {
		return name + ": failed"
	}
	if bytes > 0 {
		return fmt.Sprintf("%s: %s in %s", name, FormatBytes(bytes), FormatDuration(took))
	}
	return fmt.Sprintf("%s: done in %s", name, FormatDuration(took))
}
