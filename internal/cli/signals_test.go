package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"github.com/fcvm/fcvm/internal/supervisor"
)

func TestASignalInterruptsACommandThatCleansUp(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		cleaned := false
		err := untilInterrupted(t.Context(), func(ctx context.Context) error {
			if err := syscall.Kill(os.Getpid(), sig); err != nil {
				return err
			}
			<-ctx.Done()
			cleaned = true
			return errors.New("whatever it was doing")
		})
		var i *supervisor.Interrupted
		if !cleaned || !errors.As(err, &i) || i.Signal != sig {
			t.Errorf("%v: %v", sig, err)
		}
		if code, silent := exitCode(err); code != 128+int(sig) || silent {
			t.Errorf("%v: exit code %d", sig, code)
		}
	}
}

func TestACommandThatEndsInTimeIsNotInterrupted(t *testing.T) {
	failed := errors.New("failed")
	for _, want := range []error{nil, failed} {
		if err := untilInterrupted(t.Context(), func(context.Context) error { return want }); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
}

// As for background jobs of a shell without job control, and under nohup(1).
func TestSignalsThatAreIgnoredStayIgnored(t *testing.T) {
	signal.Ignore(syscall.SIGHUP)
	defer signal.Reset(syscall.SIGHUP)
	_, stop := containerSignals()
	defer stop()
	if !signal.Ignored(syscall.SIGHUP) {
		t.Error("SIGHUP is not ignored any more")
	}
}
