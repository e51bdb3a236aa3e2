package cli

import (
	"context"
	"fmt"
	"io"
	"sync"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/setup/preflight"
	"github.com/fcvm/fcvm/internal/vmm/kvm"
)

type preflightOptions struct{ format string }

func newPreflightCommand(a *app, run func(context.Context, *app, *preflightOptions) error) *cobra.Command {
	o := new(preflightOptions)
	cmd := &cobra.Command{
		Use:     "preflight [flags]",
		Aliases: []string{"check", "doctor"},
		Short:   "Check whether this host can run VMs, and how",
		Long: `Check this host and print one line per check, with what to do about each that is
not in order. Nothing is changed.

The exit code is 0 when fcvm run would work by some VMM, and 1 when not.`,
		Example: `  fcvm setup preflight
  fcvm setup preflight --format '{{.Driver}}'`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              interruptible(func(ctx context.Context, _ []string) error { return run(ctx, a, o) }),
	}
	addFormat(cmd, &o.format, "OK", "Driver", "Why", "Network", "NetworkWhy", "Checks")
	return cmd
}

func runPreflight(ctx context.Context, a *app, o *preflightOptions) error {
	f, err := parseFormat(o.format)
	if err != nil {
		return err
	}
	l, err := a.layout()
	if err != nil {
		return err
	}
	probe := sync.OnceValue(kvm.Probe)
	opts := preflight.Options{
		DataDir: l.Data,
		KVM:     func(context.Context) preflight.KVM { return preflight.KVM(probe()) },
	}
	for _, d := range a.drivers(l, probe) {
		opts.Drivers = append(opts.Drivers, d)
	}
	r := preflight.Run(ctx, opts)
	r.Network, r.NetworkWhy = a.autoNetwork()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case f.json:
		err = writeJSON(a.sys.Stdout, r)
	case f.tmpl != nil:
		err = f.execute(a.sys.Stdout, r)
	default:
		err = printReport(a.sys.Stdout, r)
	}
	if err == nil && !r.OK {
		return exitStatus(exitNo)
	}
	return err
}

func printReport(w io.Writer, r preflight.Report) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range r.Checks {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\n", c.Status, c.Name, printable(c.Detail))
		if c.Remedy != "" {
			_, _ = fmt.Fprintf(t, "\t\t-> %s\n", c.Remedy)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	verdict := "fcvm run works here, by " + r.Driver + ": " + r.Why
	if !r.OK {
		verdict = "fcvm run does not work here: " + r.Why
	}
	switch {
	case !r.OK:
	case r.Network == "" && r.NetworkWhy != "":
		verdict += "; there is no network for VMs: " + r.NetworkWhy
	case r.NetworkWhy != "":
		verdict += "; VMs are connected by " + r.Network + " (" + r.NetworkWhy + ")"
	case r.Network != "":
		verdict += "; VMs are connected by " + r.Network
	}
	_, err := fmt.Fprintf(w, "\n%s\n", printable(verdict))
	return err
}
