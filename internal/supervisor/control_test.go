package supervisor

import (
	"context"
	"errors"
	"testing"

	"github.com/fcvm/fcvm/internal/vm"
)

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]int{
		"TERM": 15, "sigterm": 15, "9": 9, "64": 64, "SIGQUIT": 3,
		// As systemd's images and others have it.
		"SIGRTMIN": 34, "rtmin+3": 37, "SIGRTMIN+3": 37, "SIGRTMIN+30": 64, "RTMAX": 64, "SIGRTMAX-14": 50, "SIGRTMAX-30": 34,
	} {
		if got, err := ParseSignal(text); err != nil || got != want {
			t.Errorf("%s is %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "SIG", "0", "65", "-1", "NOPE", "SIGRTMIN-1", "SIGRTMIN+31", "SIGRTMIN+", "SIGRTMAX+1", "SIGRTMAX-31", "SIGRTMIN+x"} {
		if got, err := ParseSignal(text); !errors.Is(err, vm.ErrInvalid) {
			t.Errorf("%q is %d, %v", text, got, err)
		}
	}
}

// A machine that stands still though the record says that it runs goes on when it
// is told to; while a snapshot has it, it is left alone.
func TestResumeAsksTheMachine(t *testing.T) {
	g := &flakyGuest{still: true}
	in := newInstance(t, g)
	c := (*commands)(in.life)
	in.capturing.Lock()
	if err := c.Resume(t.Context()); err != nil || g.asked != 0 {
		t.Errorf("while its snapshot is taken: %v, asked %d times", err, g.asked)
	}
	in.capturing.Unlock()
	if err := c.Resume(t.Context()); err != nil || g.still {
		t.Errorf("%v; it stands still: %t", err, g.still)
	}
	for _, want := range []vm.Status{vm.StatusPaused, vm.StatusRunning} {
		do := c.Pause
		if want == vm.StatusRunning {
			do = c.Resume
		}
		if err := do(t.Context()); err != nil || g.still != (want == vm.StatusPaused) || in.vm.Record().Status != want {
			t.Errorf("to be %s: %v, it is %s", want, err, in.vm.Record().Status)
		}
	}
}

// A guest does not stand still for a pause that has failed, and nobody knows of.
func TestAPauseIsWholeOrNone(t *testing.T) {
	failed := errors.New("failed")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name   string
		ctx    context.Context
		pauses []error
		want   vm.Status
	}{
		{"it fails half-way", t.Context(), []error{failed}, vm.StatusRunning},
		{"nobody waits", gone, nil, vm.StatusPaused},
	} {
		g := &flakyGuest{pauses: c.pauses}
		in := newInstance(t, g)
		err := (*commands)(in.life).Pause(c.ctx)
		if (err != nil) != (c.pauses != nil) || in.vm.Record().Status != c.want || g.still != (c.want == vm.StatusPaused) {
			t.Errorf("%s: %v; it is %s, and stands still: %t", c.name, err, in.vm.Record().Status, g.still)
		}
	}
}
