package none

import (
	"errors"
	"testing"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/vm"
)

func TestNone(t *testing.T) {
	a, err := New().Start(t.Context(), network.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if a.Net() != nil || a.Launcher() != nil || a.Ports() != nil {
		t.Errorf("there is something: %v %v %v", a.Net(), a.Launcher(), a.Ports())
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

func TestNonePublishes(t *testing.T) {
	_, err := New().Start(t.Context(), network.Config{Ports: []network.Port{{GuestPort: 80, Protocol: network.TCP}}})
	if !errors.Is(err, vm.ErrInvalid) {
		t.Errorf("got %v, want an invalid argument", err)
	}
}
