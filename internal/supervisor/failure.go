package supervisor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/agentclient"
	"github.com/fcvm/fcvm/internal/vmm"
)

const (
	consoleLines = 15 // of the guest's console that an error shows

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
	if exit, ended := in.machineExit(); ended {
		return fmt.Errorf("%w: %s%s", ErrGuest, exit.Reason, in.consoleText())
	}
	return fmt.Errorf("%w: %w%s", ErrGuest, err, in.consoleText())
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

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

func reasonOf(code int, killed bool) string {
	switch {
	case killed:
		return "killed by a second signal"
	case code > 128:
		return fmt.Sprintf("the container ended with code %d (signal %d)", code, code-128)
	default:
		return fmt.Sprintf("the container ended with code %d", code)
	}
}
