package cli

import (
	"fmt"
	"time"

	"github.com/spf13/pflag"

	"github.com/fcvm/fcvm/internal/vm"
)

// healthOptions is the check of a container, as it was typed.
type healthOptions struct {
	command     string
	interval    time.Duration
	timeout     time.Duration
	startPeriod time.Duration
	retries     int
	none        bool
}

func (o *healthOptions) register(f *pflag.FlagSet) {
	f.StringVar(&o.command, "health-cmd", "", "check the container's health with `COMMAND`, in its shell")
	f.DurationVar(&o.interval, "health-interval", 0, "`TIME` between checks (default 30s, or the image's)")
	f.DurationVar(&o.timeout, "health-timeout", 0, "`TIME` after which a check has failed (default 30s, or the image's)")
	f.DurationVar(&o.startPeriod, "health-start-period", 0, "`TIME` in which failures do not count")
	f.IntVar(&o.retries, "health-retries", 0, "failures in a row that make it unhealthy (default 3, or the image's)")
	f.BoolVar(&o.none, "no-healthcheck", false, "leave out the image's check")
}

// spec returns nil when nothing was said.
func (o *healthOptions) spec() (*vm.Health, error) {
	if *o == (healthOptions{}) {
		return nil, nil
	}
	if o.interval < 0 || o.timeout < 0 || o.startPeriod < 0 || o.retries < 0 {
		return nil, fmt.Errorf("%w: --health-*: times and numbers are not negative", vm.ErrInvalid)
	}
	if o.interval > 0 && o.interval < vm.MinInterval {
		return nil, fmt.Errorf("%w: --health-interval %s: it is at least %s", vm.ErrInvalid, o.interval, vm.MinInterval)
	}
	h := &vm.Health{Interval: o.interval, Timeout: o.timeout, StartPeriod: o.startPeriod, Retries: o.retries}
	switch {
	case o.none && o.command != "":
		return nil, fmt.Errorf("%w: --health-cmd and --no-healthcheck rule each other out", vm.ErrInvalid)
	case o.none:
		h.Test = []string{"NONE"}
	case o.command != "":
		h.Test = []string{"CMD-SHELL", o.command}
	}
	return h, nil
}
