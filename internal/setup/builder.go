package setup

import (
	"bytes"
	"context"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fcvm/fcvm/internal/progress"
)

// commandError: a program that was to write something has failed.
type commandError struct {
	name string
	err  error
}

func (e *commandError) Error() string { return e.name + ": " + e.err.Error() }
func (e *commandError) Unwrap() error { return e.err }

// stream runs cmd, made by newCommand, and hands what it writes to consume.
// When ctx ends, so does the program, with all its children. That it failed
// counts for more than what its output then lacked.
func stream(ctx context.Context, cmd *exec.Cmd, consume func(io.Reader) error) error {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return &commandError{cmd.Args[0], err}
	}
	ended := make(chan struct{})
	defer close(ended)
	stop := context.AfterFunc(ctx, func() {
		select { // cmd.Cancel has asked; a reader of stdout waits until they are gone
		case <-time.After(cmd.WaitDelay):
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		case <-ended:
		}
	})
	defer stop()
	consumeErr := consume(out)
	stopped := consumeErr != nil && endsEarly(out)
	if stopped {
		_ = cmd.Cancel()
	}
	err = cmd.Wait()
	if err != nil { // the others of its group may take their time
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	if err != nil && !stopped {
		return &commandError{cmd.Args[0], err}
	}
	return consumeErr
}

// endsEarly reports whether the program had more to say.
func endsEarly(out io.Reader) bool {
	n, _ := out.Read(make([]byte, 1))
	return n > 0
}

// stepLog turns what a builder writes to stderr into tasks, and keeps the end
// of it.
type stepLog struct {
	rep    progress.Reporter
	prefix string

	mu      sync.Mutex
	partial []byte
	lines   []string
	task    progress.Task
	current string
}

// Write takes the program's output, in pieces of any size.
func (l *stepLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.partial = append(l.partial, p...)
	for {
		i := bytes.IndexAny(l.partial, "\r\n")
		if i < 0 {
			break
		}
		l.line(strings.TrimSpace(string(l.partial[:i])))
		l.partial = l.partial[i+1:]
	}
	return len(p), nil
}

func (l *stepLog) line(line string) {
	if line == "" {
		return
	}
	name, info := stepName(line)
	if !info {
		if l.lines = append(l.lines, line); len(l.lines) > builderTail {
			l.lines = l.lines[1:]
		}
	}
	if name == "" || name == l.current {
		return
	}
	if l.task != nil {
		l.task.Done(nil)
	}
	l.current, l.task = name, l.rep.Task(l.prefix+name, 0)
}

// stepName returns what a line says is being done now. mmdebstrap has a line
// for each step, "I: installing essential packages...", debootstrap one for
// each package, "I: Retrieving adduser 3.134". info tells whether the line
// says no more than how it goes.
func stepName(line string) (name string, info bool) {
	text, info := strings.CutPrefix(line, "I: ")
	if !info {
		return "", false
	}
	word, _, _ := strings.Cut(text, " ")
	switch word {
	case "Retrieving", "Validating":
		return "downloading packages", true
	case "Extracting", "Unpacking":
		return "unpacking packages", true
	case "Configuring":
		return "configuring packages", true
	}
	step, ok := strings.CutSuffix(text, "...")
	if !ok || strings.HasPrefix(step, "removing ") || strings.Contains(step, "received signal") || strings.ToLower(word) != word {
		return "", true
	}
	return step, true
}

// add counts bytes of the archive towards the current step.
func (l *stepLog) add(n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.task != nil {
		l.task.Add(n)
	}
}

// done ends the last step.
func (l *stepLog) done(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.task != nil {
		l.task.Done(err)
		l.task = nil
	}
}

// tail returns the last lines that are more than information, each indented.
func (l *stepLog) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return "  " + strings.Join(l.lines, "\n  ")
}
