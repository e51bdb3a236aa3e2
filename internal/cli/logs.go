package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/logs"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/vm"
)

type logsOptions struct{ vm string }

func newLogsCommand(a *app, run func(context.Context, *app, *logsOptions) error) *cobra.Command {
	o := new(logsOptions)
	return &cobra.Command{
		Use:     "logs VM",
		Short:   "Print what a container has written",
		GroupID: groupVMs,
		Long: `Print the output of a VM's container: its stdout to stdout, its stderr to
stderr. There is a log for a VM that was run with --logs file or both, for as
long as the VM's record is there (--rm=false keeps it).`,
		Example: `  fcvm run --name job --logs both --rm=false alpine date
  fcvm logs job`,
		Args:              one("VM"),
		ValidArgsFunction: completeOneVM(a, hasLog),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.vm = args[0]
			return run(ctx, a, o)
		}),
	}
}

func hasLog(e store.Entry) bool { return e.Record.Spec.Logs != vm.LogsStream }

// completeOneVM is completeVMs for commands that take one.
func completeOneVM(a *app, want func(store.Entry) bool) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return vmNames(a, nil, typed, want), cobra.ShellCompDirectiveNoFileComp
	}
}

func runLogs(ctx context.Context, a *app, o *logsOptions) error {
	st, err := a.openStore()
	if err != nil {
		return err
	}
	e, err := st.Find(o.vm)
	if err == nil {
		err = e.Err
	}
	if err != nil {
		return err
	}
	f, err := os.Open(st.Layout().VM(e.Record.ID).ContainerLog())
	if errors.Is(err, fs.ErrNotExist) {
		if e.Record.Spec.Logs == vm.LogsStream {
			return fmt.Errorf("%w: VM %s keeps no log; run it with --logs both", vm.ErrInvalid, e.Record.Name)
		}
		return nil // it has not come to its container
	}
	if err != nil {
		return fmt.Errorf("read the log of VM %s: %w", e.Record.Name, err)
	}
	defer func() { _ = f.Close() }()
	return logs.Read(f, func(entry logs.Entry) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		w := a.sys.Stdout
		if entry.Stream == logs.Stderr {
			w = a.sys.Stderr
		}
		_, err := w.Write(entry.Data)
		return err
	})
}
