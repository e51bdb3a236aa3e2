package supervisor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/agentclient"
	"github.com/fcvm/fcvm/internal/logs"
	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/vmm"
)

const (
	consoleLines = 15 // of the guest's console, or the container's output, that an error shows

	// exitGrace is how long a VMM whose channel broke is waited for: its end
	// says more than the broken channel.
	exitGrace = 2 * time.Second
)

// untilDone returns a context that ends after limit, and with the machine.
func untilDone(ctx context.Context, m vmm.Machine, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	go func() {
		select {
		case <-m.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// bootError says why a guest did not come up, with the end of its console.
func (in *instance) bootError(ctx context.Context, limit time.Duration, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	why := err.Error()
	hint := "keep everything it said with --rm=false, and read it in " + in.vm.Dir().Console()
	if exit, ended := in.machineExit(); ended {
		why = exit.Reason
	} else if errors.Is(err, context.DeadlineExceeded) {
		why = fmt.Sprintf("its agent did not answer within %s", limit)
		hint = "a busy host may need longer: --boot-timeout " + (2 * limit).String()
	}
	if strings.Contains(why, "memory") || in.outOfMemory() {
		hint = "it ran out of memory: give it more with --mem"
	}
	return fmt.Errorf("%w: %s%s\nhint: %s", ErrBoot, why, in.consoleText(), hint)
}

func (in *instance) outOfMemory() bool {
	for _, line := range vmm.Tail(in.vm.Dir().Console(), consoleLines) {
		if strings.Contains(line, "ut of memory") || strings.Contains(line, "Initramfs unpacking failed") {
			return true
		}
	}
	return false
}

// consoleText is the end of the guest's console as a part of an error.
func (in *instance) consoleText() string {
	lines := vmm.Tail(in.vm.Dir().Console(), consoleLines)
	if len(lines) == 0 {
		return " (it wrote nothing to its console)"
	}
	return "\nthe last lines of its console:\n    " + strings.Join(lines, "\n    ")
}

// guestError says why a guest that was up is of no more use.
func (in *instance) guestError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var said *agentapi.Error
	if errors.As(err, &said) || errors.Is(err, agentclient.ErrOutput) {
		return err // the guest is well
	}
	exit, ended := in.machineExit()
	if failed := in.failure.now(); failed != nil {
		return failed // the VMM was killed for it
	}
	if ended {
		return in.pagesError(fmt.Errorf("%w: %s%s", ErrGuest, exit.Reason, in.consoleText()))
	}
	return in.pagesError(fmt.Errorf("%w: %w%s", ErrGuest, err, in.consoleText()))
}

// machineExit returns how the VMM ended, if it has or is about to.
func (in *instance) machineExit() (vmm.Exit, bool) {
	select {
	case <-in.machine.Done():
		return in.explain(in.machine.Exit()), true
	case <-time.After(exitGrace):
		return vmm.Exit{}, false
	}
}

// EndedEarly: somebody waited for the readiness gate of a container that has
// ended before it was open.
type EndedEarly struct {
	Code   int // the container's
	gate   vm.Gate
	output []string // its last lines
}

func (e *EndedEarly) Error() string {
	text := fmt.Sprintf("%v: its container has ended with code %d: %s", ErrNotReady, e.Code, gateText(e.gate))
	if len(e.output) == 0 {
		return text + " (it wrote nothing)"
	}
	return text + "\nthe last lines of its output:\n    " + strings.Join(e.output, "\n    ")
}

func (e *EndedEarly) Unwrap() error { return ErrNotReady }

// lastOutput reads the end of a container's log.
func lastOutput(path string) []string {
	r := logs.NewReader(path)
	defer func() { _ = r.Close() }()
	var kept []byte
	_ = r.Read(func(e logs.Entry) error { // what cannot be read is not shown
		kept = append(kept, e.Data...)
		kept = kept[max(0, len(kept)-maxCheckOutput):]
		return nil
	})
	lines := strings.Split(strings.TrimRight(string(kept), "\n"), "\n")
	if len(kept) == 0 {
		return nil
	}
	return lines[max(0, len(lines)-consoleLines):]
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

func reasonOf(code int, killed error) string {
	switch {
	case killed != nil:
		return killed.Error()
	case code > 128:
		return fmt.Sprintf("the container ended with code %d (signal %d)", code, code-128)
	default:
		return fmt.Sprintf("the container ended with code %d", code)
	}
}
