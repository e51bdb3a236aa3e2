package supervisor

import (
	"context"
	"time"

	"github.com/fcvm/fcvm/internal/events"
	"github.com/fcvm/fcvm/internal/vm"
)

// healthCheck is the check of a container: the image's, with what the user
// says in place of it.
func (l *life) healthCheck() vm.Health {
	var h vm.Health
	if img := l.image.Config.Health; img != nil {
		h = vm.Health{
			Test: img.Test, Interval: img.Interval, Timeout: img.Timeout, StartPeriod: img.StartPeriod, Retries: img.Retries,
		}
	}
	if own := l.Spec.Health; own != nil {
		if len(own.Test) > 0 {
			h.Test = own.Test
		}
		for _, d := range []struct{ to, from *time.Duration }{
			{&h.Interval, &own.Interval},
			{&h.Timeout, &own.Timeout},
			{&h.StartPeriod, &own.StartPeriod},
		} {
			if *d.from > 0 {
				*d.to = *d.from
			}
		}
		if own.Retries > 0 {
			h.Retries = own.Retries
		}
	}
	if h.Interval <= 0 {
		h.Interval = vm.DefaultHealthInterval
	}
	h.Interval = max(h.Interval, vm.MinInterval)
	if h.Timeout <= 0 {
		h.Timeout = vm.DefaultHealthTimeout
	}
	if h.Retries <= 0 {
		h.Retries = vm.DefaultHealthRetries
	}
	return h
}

// healthArgs is the command of a check; nil: there is none.
func healthArgs(test []string) []string {
	if len(test) < 2 {
		return nil
	}
	switch test[0] {
	case "CMD":
		return test[1:]
	case "CMD-SHELL":
		return []string{"/bin/sh", "-c", test[1]}
	}
	return nil
}

// watchHealth runs the check for as long as the container runs.
func (in *instance) watchHealth(ctx context.Context) {
	h := in.healthCheck()
	args := healthArgs(h.Test)
	if args == nil {
		return
	}
	in.setHealth(vm.HealthStarting)
	grace := time.Now().Add(h.StartPeriod)
	failures := 0
	tick := time.NewTicker(h.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		before := in.vm.Record()
		if before.Status != vm.StatusRunning {
			continue // a paused VM is neither well nor ill
		}
		ok := in.checkHealth(ctx, args, h.Timeout)
		after := in.vm.Record()
		switch {
		case ctx.Err() != nil:
			return
		case after.Moves() != before.Moves(): // it was paused meanwhile
		case ok:
			failures = 0
			in.setHealth(vm.HealthHealthy)
		case time.Now().Before(grace) && after.Health == vm.HealthStarting:
		default:
			if failures++; failures >= h.Retries {
				in.setHealth(vm.HealthUnhealthy)
			}
		}
	}
}

func (in *instance) checkHealth(ctx context.Context, args []string, timeout time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	code, _, err := in.exec(ctx, args)
	return err == nil && code == 0
}

func (in *instance) setHealth(h vm.HealthState) {
	changed := false
	err := in.vm.Update(func(r *vm.Record) error {
		changed, r.Health = r.Health != h, h
		return nil
	})
	if err != nil {
		in.Verbose(err.Error())
	}
	if changed {
		in.vm.Tell(events.Health, string(h))
	}
}
