package cli

import (
	"errors"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/vm"
)

func TestHealthInterval(t *testing.T) {
	for d, want := range map[time.Duration]error{
		0: nil, vm.MinInterval: nil, time.Hour: nil,
		1: vm.ErrInvalid, vm.MinInterval - 1: vm.ErrInvalid, -time.Second: vm.ErrInvalid,
	} {
		o := healthOptions{command: "true", interval: d}
		if h, err := o.spec(); !errors.Is(err, want) || err == nil && h.Interval != d {
			t.Errorf("%s: %+v, %v; want %v", d, h, err, want)
		}
	}
}
