package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/inventory"
	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/term"
)

type snapshotExportOptions struct {
	snapshot, file string
	withGuest      bool
}

func newSnapshotExportCommand(a *app, run func(context.Context, *app, *snapshotExportOptions) error) *cobra.Command {
	o := new(snapshotExportOptions)
	cmd := &cobra.Command{
		Use:   "export [flags] SNAPSHOT FILE|-",
		Short: "Write a snapshot as one file",
		Long: `Write a snapshot as one file, compressed and with checksums, or to standard output
(-). It can be started on another host with the same kernel, guest root, image
and VMM, and, with KVM, the same CPU. --with-guest takes kernel, guest root and
image along, so that the other host needs no more than the VMM; without it that
has to have them from another snapshot that was exported so.

It holds all that the VM had in its memory: keys and passwords, too.`,
		Example: `  fcvm snapshot export warm warm.fcvm
  fcvm snapshot export --with-guest warm - | ssh other fcvm snapshot import -`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return &usageError{command: cmd.CommandPath(), err: errors.New("it takes a snapshot and a file")}
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return completeOneSnapshot(a)(cmd, args, typed)
		},
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.snapshot, o.file = args[0], args[1]
			return run(ctx, a, o)
		}),
	}
	cmd.Flags().BoolVar(&o.withGuest, "with-guest", false, "take kernel, guest root and image along")
	return cmd
}

var errTerminal = errors.New("the output is a terminal; give a file, or pipe it somewhere")

func runSnapshotExport(ctx context.Context, a *app, o *snapshotExportOptions) error {
	return a.eachSnapshot(ctx, []string{o.snapshot}, func(s *snapshot.Store, e snapshot.Entry) error {
		return a.withHeld(s, e, func(snap *snapshot.Snapshot) error { return a.export(ctx, snap, o) })
	})
}

func (a *app) export(ctx context.Context, snap *snapshot.Snapshot, o *snapshotExportOptions) error {
	if _, ok := term.Of(a.sys.Stdout); ok && o.file == "-" {
		return errTerminal
	}
	var parts []snapshot.Part
	if o.withGuest {
		g, err := a.openGuest(progress.Discard)
		if err != nil {
			return err
		}
		defer g.close()
		if parts, err = g.pack(ctx, snap); err != nil {
			return fmt.Errorf("export snapshot %s: %w", snap.Manifest.Title(), err)
		}
	}
	if o.file == "-" {
		return snap.Export(ctx, a.sys.Stdout, parts...)
	}
	return writeOutput(o.file, 0o600, func(w io.Writer) error { return snap.Export(ctx, w, parts...) })
}

type snapshotImportOptions struct{ file, name string }

func newSnapshotImportCommand(a *app, run func(context.Context, *app, *snapshotImportOptions) error) *cobra.Command {
	o := new(snapshotImportOptions)
	cmd := &cobra.Command{
		Use:   "import [flags] FILE|-",
		Short: "Read a snapshot that was exported",
		Long: `Read a snapshot that fcvm snapshot export has written, from a file or from standard
input (-), and print its name. What it needs comes with it if it was exported
--with-guest, and is kept as long as the snapshot is; what is missing is said.

A snapshot is a VM's state, which the VMM believes: import only what comes from
somebody whom you trust.`,
		Example:           `  fcvm snapshot import --name warm warm.fcvm`,
		Args:              one("file"),
		ValidArgsFunction: cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.file = args[0]
			return run(ctx, a, o)
		}),
	}
	cmd.Flags().StringVar(&o.name, "name", "", "`NAME` of the snapshot (default: the one it had, or its VM's and a number)")
	complete(cmd, "name", cobra.NoFileCompletions)
	return cmd
}

func runSnapshotImport(ctx context.Context, a *app, o *snapshotImportOptions) error {
	s, err := a.openSnapshots()
	if err != nil {
		return err
	}
	in := a.sys.Stdin
	if o.file != "-" {
		f, err := os.Open(o.file)
		if err != nil {
			return fmt.Errorf("import snapshot: %w", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	var title string
	err = a.withProgress(false, func(rep progress.Reporter) error {
		g, err := a.openGuest(rep)
		if err != nil {
			return err
		}
		snap, err := s.Import(ctx, contextReader{ctx, in}, o.name, g)
		if err != nil {
			return err
		}
		defer snap.HandOver()
		title = snap.Manifest.Title()
		for _, line := range g.missing(&snap.Manifest) {
			rep.Note(line)
		}
		return nil
	})
	if err == nil {
		_, err = fmt.Fprintln(a.sys.Stdout, title)
	}
	return err
}

// contextReader fails once its context has ended.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

type snapshotPruneOptions struct{ all, force bool }

func newSnapshotPruneCommand(a *app, run func(context.Context, *app, *snapshotPruneOptions) error) *cobra.Command {
	o := new(snapshotPruneOptions)
	cmd := &cobra.Command{
		Use:   "prune [flags]",
		Short: "Remove snapshots that were taken automatically",
		Long: `Remove, after asking, the snapshots that fcvm has taken by itself to start VMs
sooner; with --all every snapshot. Those that VMs run from stay.`,
		Example: `  fcvm snapshot prune
  fcvm snapshot prune --all --force`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              interruptible(func(ctx context.Context, _ []string) error { return run(ctx, a, o) }),
	}
	cmd.Flags().BoolVarP(&o.all, "all", "a", false, "remove all that no VM runs from")
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "do not ask")
	return cmd
}

func runSnapshotPrune(ctx context.Context, a *app, o *snapshotPruneOptions) error {
	inv, err := a.openInventory()
	if err != nil {
		return err
	}
	items, listErr := inv.List()
	unused := slices.DeleteFunc(inventory.Unused(items, o.all), func(i inventory.Item) bool { return i.Kind != inventory.Snapshot })
	return errors.Join(listErr, a.removeUnused(ctx, unused, o.force, false))
}
