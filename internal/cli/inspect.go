package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/vm"
)

type inspectOptions struct {
	vms    []string
	format string
}

func newInspectCommand(a *app, run func(context.Context, *app, *inspectOptions) error) *cobra.Command {
	o := new(inspectOptions)
	cmd := &cobra.Command{
		Use:     "inspect [flags] VM...",
		Short:   "Show all that is known of VMs, as JSON",
		GroupID: groupVMs,
		Long: `Print the records of VMs as a JSON array: what was asked for, what became of it
(driver and why it was chosen, digests, ports), the history and how long each
phase of the start took. VM is an id, the unique beginning of one, or a name.`,
		Example: `  fcvm inspect box
  fcvm inspect --format '{{.Resolved.Driver}}: {{.Resolved.DriverReason}}' box`,
		Args:              oneOrMore("VM"),
		ValidArgsFunction: completeVMs(a, anyVM),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.vms = args
			return run(ctx, a, o)
		}),
	}
	addFormat(cmd, &o.format)
	return cmd
}

// runInspect prints those that were found even when others were not.
func runInspect(_ context.Context, a *app, o *inspectOptions) error {
	f, err := parseFormat(o.format)
	if err != nil {
		return err
	}
	st, err := a.openStore()
	if err != nil {
		return err
	}
	var (
		records []vm.Record
		failed  []error
	)
	for _, ref := range o.vms {
		e, err := st.Find(ref)
		if err == nil {
			err = e.Err
		}
		if err != nil {
			failed = append(failed, err)
			continue
		}
		records = append(records, e.Record)
	}
	if f.plain() {
		f.json = true
	}
	return errors.Join(append([]error{writeItems(a.sys.Stdout, f, records)}, failed...)...)
}
