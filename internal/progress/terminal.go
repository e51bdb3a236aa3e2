package progress

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

// How a terminal is redrawn. Steps that are over before the first frame never
// show, so that a quick command does not flicker.
const (
	framePeriod  = 100 * time.Millisecond
	defaultCols  = 80
	defaultRows  = 24
	maxBarWidth  = 30
	minNameWidth = 10
)

// TerminalOptions change what a Terminal shows.
type TerminalOptions struct {
	// Keep leaves one line for every finished step; otherwise nothing of the
	// steps stays on the screen.
	Keep bool
	// Size gives the terminal's size in characters; nil or zeros: 80 by 24.
	Size func() (rows, cols int)
}

// Terminal redraws the running steps in place, at the bottom of what the
// terminal shows. It must be closed: that erases them. After Close steps are
// silent and notes are plain lines, so it may be closed early, when the
// terminal is needed for something else.
type Terminal struct {
	w    io.Writer
	opts TerminalOptions
	now  func() time.Time

	mu     sync.Mutex
	tasks  []*terminalTask
	drawn  []int // widths of the lines on the screen
	frame  int
	closed bool
	quit   chan struct{} // not nil while the ticker runs
	ended  chan struct{}
}

// NewTerminal returns a reporter that draws on w. Each frame is one Write.
func NewTerminal(w io.Writer, o TerminalOptions) *Terminal {
	return &Terminal{w: w, opts: o, now: time.Now}
}

// Task implements Reporter.
func (t *Terminal) Task(name string, total int64) Task {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	task := &terminalTask{t: t, name: clean(name), total: total, start: now, rate: meter{at: now}}
	if t.closed {
		return task
	}
	t.tasks = append(t.tasks, task)
	if t.quit == nil {
		t.quit, t.ended = make(chan struct{}), make(chan struct{})
		go t.tick(t.quit, t.ended)
	}
	return task
}

// Note implements Reporter.
func (t *Terminal) Note(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.print(clean(line))
}

// Close erases the steps and stops drawing. It may be called many times.
func (t *Terminal) Close() {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return
	}
	t.closed = true
	t.write(t.erase())
	quit, ended := t.quit, t.ended
	t.mu.Unlock()
	if quit != nil {
		close(quit)
		<-ended
	}
}

func (t *Terminal) tick(quit <-chan struct{}, ended chan<- struct{}) {
	defer close(ended)
	ticker := time.NewTicker(framePeriod)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			t.mu.Lock()
			t.redraw()
			t.mu.Unlock()
		case <-quit:
			return
		}
	}
}

// redraw shows the next frame.
func (t *Terminal) redraw() {
	if t.closed || (len(t.tasks) == 0 && len(t.drawn) == 0) {
		return
	}
	t.frame++
	erase := t.erase()
	t.write(erase + t.draw())
}

// print puts a line that stays above the running steps.
func (t *Terminal) print(line string) {
	erase, lines := t.erase(), ""
	if erase != "" {
		lines = t.draw()
	}
	t.write(erase + line + "\r\n" + lines)
}

// write ignores errors: nobody is left to tell them to.
func (t *Terminal) write(s string) {
	if s != "" {
		_, _ = io.WriteString(t.w, s)
	}
}

// erase returns what takes the steps off the screen. Lines may have been
// wrapped since, by a terminal that became narrower.
func (t *Terminal) erase() string {
	if len(t.drawn) == 0 {
		return ""
	}
	_, cols := t.size()
	up := 0
	for _, w := range t.drawn {
		up += max(1, (w+cols-1)/cols)
	}
	t.drawn = t.drawn[:0]
	return fmt.Sprintf("\x1b[%dA\r\x1b[J", up)
}

// draw returns the lines of the running steps, and remembers them. The last
// column stays free: some terminals wrap as soon as it is written.
func (t *Terminal) draw() string {
	rows, cols := t.size()
	shown := t.tasks
	if limit := max(1, rows-1); len(shown) > limit {
		shown = shown[:limit]
	}
	var b strings.Builder
	for _, task := range shown {
		line := task.line(cols-1, t.frame, t.now())
		t.drawn = append(t.drawn, width(line))
		b.WriteString(line + "\r\n")
	}
	return b.String()
}

func (t *Terminal) size() (rows, cols int) {
	if t.opts.Size != nil {
		rows, cols = t.opts.Size()
	}
	if rows <= 0 {
		rows = defaultRows
	}
	if cols <= 0 {
		cols = defaultCols
	}
	return rows, cols
}

// terminalTask is guarded by its Terminal's mutex.
type terminalTask struct {
	t     *Terminal
	name  string
	total int64
	start time.Time
	bytes int64
	rate  meter
}

// Add implements Task.
func (k *terminalTask) Add(n int64) {
	k.t.mu.Lock()
	defer k.t.mu.Unlock()
	k.bytes += n
}

// Done implements Task.
func (k *terminalTask) Done(err error) {
	t := k.t
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(t.tasks, k)
	if i < 0 || t.closed {
		return
	}
	t.tasks = slices.Delete(t.tasks, i, i+1)
	if t.opts.Keep {
		t.print(summary(k.name, k.bytes, t.now().Sub(k.start), err))
	}
}
