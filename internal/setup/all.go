package setup

import (
	"context"
	"errors"
	"fmt"

	"github.com/fcvm/fcvm/internal/progress"
)

// AllOptions says what is worth installing on this host.
type AllOptions struct {
	// Firecracker is of use: KVM runs guests here, and there is no program that
	// can be used. One that is installed is too old then, or broken.
	Firecracker bool
	// Fallback: there is another VMM, so that a Firecracker that cannot be
	// downloaded is no failure.
	Fallback bool
}

// All installs what is missing, and makes everything ready for the first VM.
func (s *Setup) All(ctx context.Context, o AllOptions, rep progress.Reporter) error {
	// Told now rather than after a minute's work.
	if _, err := s.findAgent(); err != nil {
		return err
	}
	if err := s.Kernel(ctx, KernelOptions{}, rep); err != nil {
		return fmt.Errorf("set up the kernel: %w", err)
	}
	if err := s.Rootfs(ctx, RootfsOptions{}, rep); err != nil {
		return fmt.Errorf("set up the guest root: %w", err)
	}
	if o.Firecracker {
		err := s.Firecracker(ctx, FirecrackerOptions{Force: true}, rep)
		switch {
		case err == nil:
		case o.Fallback && errors.Is(err, ErrDownload):
			rep.Note(err.Error())
		default:
			return fmt.Errorf("set up Firecracker: %w", err)
		}
	}
	_, err := s.Artifacts(ctx)
	return err
}
