package supervisor

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func newSignals(t *testing.T) (context.Context, *signals) {
	t.Helper()
	ctx, s := watchSignals(t.Context(), nil)
	t.Cleanup(s.stop)
	return ctx, s
}

func TestSignalEndsAStart(t *testing.T) {
	ctx, s := newSignals(t)
	s.handle(syscall.SIGUSR1, time.Now())
	if ctx.Err() != nil {
		t.Fatal("SIGUSR1 ended the start")
	}
	s.handle(syscall.SIGTERM, time.Now())
	var i *Interrupted
	if !errors.As(context.Cause(ctx), &i) || i.ExitCode() != 143 {
		t.Errorf("cause %v, want SIGTERM with exit code 143", context.Cause(ctx))
	}
	if s.setForward(func(int) {}) {
		t.Error("the container was given the signals of a start that had ended")
	}
}

// A container that a signal has ended is not started again; one that has survived
// the signal is, when it ends some time later.
func TestEndThatWasAskedFor(t *testing.T) {
	for name, tc := range map[string]struct {
		sig   syscall.Signal // 0: none
		after time.Duration
		asked bool
	}{
		"by no signal":              {0, 0, false},
		"at once":                   {syscall.SIGTERM, 0, true},
		"after an orderly end":      {syscall.SIGINT, time.Minute, true},
		"long after":                {syscall.SIGTERM, endWindow, false},
		"a signal that asks not so": {syscall.SIGHUP, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, s := newSignals(t)
				for _, want := range []bool{tc.asked, false} { // the next container has not been signalled
					s.setForward(func(int) {})
					if tc.sig != 0 {
						s.handle(tc.sig, time.Now())
						tc.sig = 0
					}
					time.Sleep(tc.after)
					s.setForward(nil)
					if s.endAsked() != want {
						t.Errorf("asked: %v, want %v", s.endAsked(), want)
					}
				}
			})
		})
	}
}

func TestSecondSignalKills(t *testing.T) {
	now := time.Now()
	tests := []struct {
		name  string
		first syscall.Signal
		again syscall.Signal
		after time.Duration
		kills bool
	}{
		{"within the window", syscall.SIGINT, syscall.SIGTERM, time.Second, true},
		{"after the window", syscall.SIGINT, syscall.SIGINT, killWindow, false},
		{"a signal that asks for no end", syscall.SIGINT, syscall.SIGHUP, time.Second, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, s := newSignals(t)
			forwarded, killed := make(chan int, 2), make(chan struct{})
			s.setKill(func() { close(killed) })
			if !s.setForward(func(sig int) { forwarded <- sig }) {
				t.Fatal("refused")
			}
			s.handle(tt.first, now)
			if got := <-forwarded; got != int(tt.first) {
				t.Errorf("the container got signal %d, want %d", got, tt.first)
			}
			s.handle(tt.again, now.Add(tt.after))
			if (s.killed() != nil) != tt.kills {
				t.Fatalf("killed: %v, want %v", s.killed(), tt.kills)
			}
			if tt.kills {
				<-killed
			} else if got := <-forwarded; got != int(tt.again) {
				t.Errorf("the container got signal %d, want %d", got, tt.again)
			}
			if ctx.Err() != nil {
				t.Error("the run was interrupted")
			}
		})
	}
}
