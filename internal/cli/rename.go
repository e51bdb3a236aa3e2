package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/control"
	"github.com/fcvm/fcvm/internal/vm"
)

type renameOptions struct{ vm, name string }

func newRenameCommand(a *app, run func(context.Context, *app, *renameOptions) error) *cobra.Command {
	o := new(renameOptions)
	return &cobra.Command{
		Use:     "rename VM NAME",
		Short:   "Give a VM another name",
		GroupID: groupVMs,
		Long:    `Give a VM another name. What runs in it keeps the hostname that it has.`,
		Example: `  fcvm rename nimble-otter web`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return &usageError{command: cmd.CommandPath(), err: errors.New("it takes a VM and its new name")}
			}
			return nil
		},
		ValidArgsFunction: completeOneVM(a, anyVM),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.vm, o.name = args[0], args[1]
			return run(ctx, a, o)
		}),
	}
}

func runRename(ctx context.Context, a *app, o *renameOptions) error {
	st, err := a.openStore()
	if err != nil {
		return err
	}
	e, err := st.Find(o.vm)
	if err = errors.Join(err, e.Err); err != nil {
		return err
	}
	if err := vm.CheckName(o.name); err != nil {
		return err
	}
	if e.Alive {
		err = ask(st, e, "rename", func(c *control.Client) error { return c.Rename(ctx, o.name) })
		if !errors.Is(err, control.ErrGone) {
			return err
		}
		if err := waitGone(ctx, st, e.Record.ID); err != nil {
			return fmt.Errorf("rename %s: %w", nameOf(e), err)
		}
	}
	return st.Rename(e.Record.ID, o.name)
}
