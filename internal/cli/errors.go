package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"syscall"
	"unicode"

	"github.com/fcvm/fcvm/internal/control"
	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/supervisor"
	"github.com/fcvm/fcvm/internal/vm"
)

// Exit codes, besides the container's own.
const (
	exitNo     = 1   // the answer to what was asked is no (setup preflight)
	exitFailed = 125 // fcvm or the guest failed
	// 126 and 127, the command in the container cannot be run or was not
	// found, come with supervisor.StartError; 128+n, ended by signal n, with
	// supervisor.Interrupted.
	exitPipe = 128 + int(syscall.SIGPIPE) // nobody reads the output any more
)

// exitStatus ends the process with a code, and nothing is printed: all has
// been said.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// usageError is a command line that cannot be understood.
type usageError struct {
	command string // as typed: "fcvm run"
	err     error
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// errDataDir: the data directory cannot be used.
var errDataDir = errors.New("cannot use the data directory")

// report prints what there is to say of a command's end, and returns the exit
// code.
func (a *app) report(err error) int {
	code, silent := exitCode(err)
	if !silent {
		printError(a.sys.Stderr, err)
	}
	return code
}

// exitCode is the one place that maps errors to exit codes.
func exitCode(err error) (code int, silent bool) {
	var (
		status      exitStatus
		start       *supervisor.StartError
		interrupted *supervisor.Interrupted
		early       *supervisor.EndedEarly
	)
	switch {
	case err == nil:
		return 0, true
	case errors.As(err, &status):
		return int(status), true
	case errors.As(err, &interrupted):
		return interrupted.ExitCode(), false
	case errors.Is(err, syscall.EPIPE):
		return exitPipe, true
	case errors.As(err, &start):
		return start.Exit.Code, false
	case errors.As(err, &early) && early.Code != 0:
		return early.Code, false
	default:
		return exitFailed, false
	}
}

// printError writes an error as people read it: one line that begins with
// "fcvm: ", further lines as they are (the guest's console), and a hint.
func printError(w io.Writer, err error) {
	text := printable(err.Error())
	if h := hint(err); h != "" && !strings.Contains(text, "hint: ") {
		text += "\nhint: " + h
	}
	_, _ = fmt.Fprintf(w, "fcvm: %s\n", text)
}

// hint says what to do about an error whose message cannot know it.
func hint(err error) string {
	var (
		usage *usageError
		early *supervisor.EndedEarly // its last words are in it
	)
	switch {
	case errors.As(err, &usage):
		return fmt.Sprintf("see '%s --help'", usage.command)
	case errors.Is(err, errDataDir) && errors.Is(err, fs.ErrPermission):
		return "choose another one with --data-dir or FCVM_DATA_DIR"
	case errors.Is(err, image.ErrNoSpace), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "make room, or choose another data directory with --data-dir or FCVM_DATA_DIR"
	case errors.Is(err, syscall.EROFS):
		return "the data directory is on a file system that is read-only: what is there can be looked at; for more, choose another one with --data-dir or FCVM_DATA_DIR"
	case errors.Is(err, vm.ErrAmbiguous):
		return "give more of the id, or the name"
	case errors.Is(err, vm.ErrPaused):
		return "let it go on with: fcvm resume"
	case errors.Is(err, vm.ErrNotRunning):
		return "fcvm ls lists what runs, fcvm logs what a VM has said that was run with --logs both"
	case errors.Is(err, control.ErrGone):
		return "it has just ended, or is about to; fcvm ls -a tells"
	case errors.Is(err, supervisor.ErrNotReady) && !errors.As(err, &early):
		return "run it in the foreground, or without --wait-ready, to see what it says"
	case errors.Is(err, context.DeadlineExceeded):
		return "try again; the host or the network may have been busy"
	}
	return ""
}

// printable keeps what a guest or a registry said from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}
