package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/supervisor"
)

// interruptible makes a command's function of run: SIGINT, SIGTERM and SIGHUP
// end its context, so that it cleans up behind it; a second one ends the
// process at once.
func interruptible(run func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		return untilInterrupted(cmd.Context(), func(ctx context.Context) error { return run(ctx, args) })
	}
}

func untilInterrupted(ctx context.Context, run func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ch := make(chan os.Signal, 1)
	notify(ch, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(ch)
	go func() {
		select {
		case sig := <-ch:
			signal.Stop(ch)
			if n, ok := sig.(syscall.Signal); ok {
				cancel(&supervisor.Interrupted{Signal: n})
			}
		case <-ctx.Done():
		}
	}()
	err := run(ctx)
	// What was interrupted fails with whatever it was doing.
	var i *supervisor.Interrupted
	if err != nil && errors.As(context.Cause(ctx), &i) {
		return i
	}
	return err
}

// notify leaves out signals that whoever started fcvm has set to be ignored,
// as nohup(1) does and shells for background jobs.
func notify(ch chan<- os.Signal, sigs ...os.Signal) {
	for _, s := range sigs {
		if !signal.Ignored(s) {
			signal.Notify(ch, s)
		}
	}
}

// signalBuffer is how many signals may wait to be taken.
const signalBuffer = 16

// containerSignals takes the signals that concern the container rather than
// fcvm, until stop is called. SIGPIPE is taken from fcvm as well, for nobody:
// a reader that goes away (| head) is an error of the Write, and must not end
// this process before it has cleaned up.
func containerSignals() (ch <-chan os.Signal, stop func()) {
	signals, pipe := make(chan os.Signal, signalBuffer), make(chan os.Signal, 1)
	notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	signal.Notify(pipe, syscall.SIGPIPE)
	return signals, func() {
		signal.Stop(signals)
		signal.Stop(pipe)
	}
}
