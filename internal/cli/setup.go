package cli

import (
	"context"
	"sync"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/setup"
	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/kvm"
)

type setupOptions struct{ quiet bool }

// newSetupCommand is all parts in one, and the parent of each.
func newSetupCommand(a *app) *cobra.Command {
	cmd := newSetupAllCommand(a, runSetup)
	cmd.AddCommand(
		newPreflightCommand(a, runPreflight),
		newSetupKernelCommand(a, runSetupKernel),
		newSetupRootfsCommand(a, runSetupRootfs),
		newSetupFirecrackerCommand(a, runSetupFirecracker),
	)
	return cmd
}

func newSetupAllCommand(a *app, run func(context.Context, *app, *setupOptions) error) *cobra.Command {
	o := new(setupOptions)
	cmd := &cobra.Command{
		Use:     "setup [flags]",
		Short:   "Install what VMs need on this host",
		GroupID: groupHost,
		Long: `Install what is missing: a kernel, the guest root, and Firecracker where KVM can
run it and it can be downloaded. What is there and can be used is left alone, and an
interrupted setup is done again by the next one. Root is not needed.

The parts can be set up one by one, from other sources: see the commands below.`,
		Example: `  fcvm setup
  fcvm setup preflight
  fcvm setup kernel --from host --force`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              interruptible(func(ctx context.Context, _ []string) error { return run(ctx, a, o) }),
	}
	addQuiet(cmd, &o.quiet)
	return cmd
}

func addQuiet(cmd *cobra.Command, quiet *bool) {
	cmd.Flags().BoolVarP(quiet, "quiet", "q", false, "show no progress")
}

func runSetup(ctx context.Context, a *app, o *setupOptions) error {
	what, err := a.lacks(ctx)
	if err != nil {
		return err
	}
	return a.install(o.quiet, func(s *setup.Setup, rep progress.Reporter) error { return s.All(ctx, what, rep) })
}

// lacks says what setup is to install here, beside kernel and guest root.
func (a *app) lacks(ctx context.Context) (setup.AllOptions, error) {
	l, err := a.layout()
	if err != nil {
		return setup.AllOptions{}, err
	}
	probe := sync.OnceValue(kvm.Probe)
	own := a.sys.getenv("FCVM_FIRECRACKER") != ""
	return worthInstalling(probe(), a.firecracker(l, probe).Probe(ctx), a.qemu(l, probe).Probe(ctx), own), nil
}

// worthInstalling takes what the host has; own: the person has said which
// Firecracker is to be run, so that another one would be of no use.
func worthInstalling(k kvm.Result, fc, qemu vmm.Availability, own bool) setup.AllOptions {
	return setup.AllOptions{Firecracker: k.RunsGuest && !fc.Usable && !own, Fallback: qemu.Usable}
}

// install runs a step of setup with progress that stays.
func (a *app) install(quiet bool, step func(*setup.Setup, progress.Reporter) error) error {
	s, err := a.openSetup()
	if err != nil {
		return err
	}
	return a.withProgress(quiet, func(rep progress.Reporter) error { return step(s, rep) })
}
