package cli

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/supervisor"
)

func TestTheSecondSignalHangsACommandUp(t *testing.T) {
	type signal struct {
		sig syscall.Signal
		at  time.Duration
	}
	for name, tc := range map[string]struct {
		signals []signal
		want    syscall.Signal // 0: it goes on
	}{
		"one":               {[]signal{{syscall.SIGINT, 0}}, 0},
		"two":               {[]signal{{syscall.SIGINT, 0}, {syscall.SIGINT, 9 * time.Second}}, syscall.SIGINT},
		"two kinds":         {[]signal{{syscall.SIGINT, 0}, {syscall.SIGTERM, time.Second}}, syscall.SIGTERM},
		"late":              {[]signal{{syscall.SIGINT, 0}, {syscall.SIGINT, 11 * time.Second}}, 0},
		"late, then sooner": {[]signal{{syscall.SIGINT, 0}, {syscall.SIGINT, 11 * time.Second}, {syscall.SIGINT, 12 * time.Second}}, syscall.SIGINT},
		"none for an end":   {[]signal{{syscall.SIGUSR1, 0}, {syscall.SIGHUP, 0}, {syscall.SIGQUIT, 0}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, hangUp := context.WithCancelCause(t.Context())
			stuck := make(chan struct{})
			defer close(stuck)
			s := &commandSignals{send: func(int) error { <-stuck; return nil }, hangUp: hangUp}
			for _, sig := range tc.signals {
				s.handle(sig.sig, time.Unix(1000, 0).Add(sig.at))
			}
			var i *supervisor.Interrupted
			errors.As(context.Cause(ctx), &i)
			switch {
			case (i != nil) != (tc.want != 0):
				t.Errorf("hung up: %v", i)
			case i != nil:
				if code, _ := exitCode(i); code != 128+int(tc.want) {
					t.Errorf("exit code %d", code)
				}
			}
		})
	}
}
