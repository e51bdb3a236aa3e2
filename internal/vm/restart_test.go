package vm

import (
	"errors"
	"testing"
	"time"
)

func TestParseRestart(t *testing.T) {
	for s, want := range map[string]Restart{
		"no": {}, "always": {Policy: "always"}, "on-failure": {Policy: "on-failure"},
		"on-failure:3": {Policy: "on-failure", Max: 3},
	} {
		if got, err := ParseRestart(s); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "never", "always:1", "on-failure:0", "on-failure:x", "no:"} {
		if _, err := ParseRestart(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v; want ErrInvalid", s, err)
		}
	}
}

func TestRestartAgain(t *testing.T) {
	tests := []struct {
		r        Restart
		code     int
		restarts int
		want     bool
	}{
		{Restart{}, 1, 0, false},
		{Restart{Policy: RestartAlways}, 0, 99, true},
		{Restart{Policy: RestartOnFailure}, 0, 0, false},
		{Restart{Policy: RestartOnFailure}, 1, 99, true},
		{Restart{Policy: RestartOnFailure, Max: 2}, 1, 1, true},
		{Restart{Policy: RestartOnFailure, Max: 2}, 1, 2, false},
	}
	for _, tt := range tests {
		if got := tt.r.Again(tt.code, tt.restarts); got != tt.want {
			t.Errorf("%+v after code %d and %d restarts: %v", tt.r, tt.code, tt.restarts, got)
		}
	}
}

func TestParseGate(t *testing.T) {
	def := Gate{Timeout: DefaultGateTimeout, Interval: DefaultGateInterval}
	with := func(kind GateKind, value string) Gate { g := def; g.Kind, g.Value = kind, value; return g }
	quick := with(GateTCP, "80")
	quick.Timeout, quick.Interval = 30*time.Second, 100*time.Millisecond
	for s, want := range map[string]Gate{
		"agent":                              with(GateAgent, ""),
		"tcp=80":                             with(GateTCP, "80"),
		"tcp=80,interval=100ms,timeout=30s":  quick,
		"http=http://localhost:8080/a?b=c,d": with(GateHTTP, "http://localhost:8080/a?b=c,d"),
		"log=ready, (set|go)=yes":            with(GateLog, "ready, (set|go)=yes"),
		"exec=test -e /a":                    with(GateExec, "test -e /a"),
	} {
		if got, err := ParseGate(s); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "agent=1", "tcp=0", "tcp=x", "tcp", "http=localhost", "log=(", "log=", "exec= ", "smoke=x", "tcp=80,timeout=soon", "tcp=80,interval=1ns", "tcp=80,interval=99ms,timeout=1s"} {
		if _, err := ParseGate(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v; want ErrInvalid", s, err)
		}
	}
}
