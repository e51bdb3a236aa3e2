package supervisor

import (
	"context"
	"errors"
	"fmt"

	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/vmm"
)

// inflate gives a guest that has booted the balloon that was asked for last: on
// the command line, or since then.
func (in *instance) inflate(ctx context.Context) error {
	mib := in.Spec.BalloonMiB
	if r := in.vm.Record(); r.Restarts > 0 {
		mib = r.Resolved.BalloonMiB
	}
	if mib == 0 {
		return nil
	}
	return in.setBalloon(ctx, mib)
}

// setBalloon asks the guest for memory, and writes down how much.
func (in *instance) setBalloon(ctx context.Context, mib int) error {
	if err := in.Spec.CheckBalloon(mib); err != nil {
		return err
	}
	b, ok := in.machine.(vmm.Ballooner)
	if !ok {
		return fmt.Errorf("%w: --balloon with %s", vmm.ErrUnsupported, in.driver.Name())
	}
	err := b.SetBalloon(ctx, mib)
	if errors.Is(err, vmm.ErrUnsupported) && in.from != nil && in.Clone == nil {
		return fmt.Errorf("%w\nhint: a VM that is run with --no-cache, or with --balloon, boots, and can do it", err)
	}
	if err != nil {
		return fmt.Errorf("set the balloon to %d MiB: %w", mib, err)
	}
	return in.vm.Update(func(r *vm.Record) error {
		r.Resolved.BalloonMiB = mib
		return nil
	})
}
