package supervisor

import (
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
