package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/control"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/vm"
)

func newSnapshotCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "snapshot",
		Aliases: []string{"snapshots"},
		Short:   "Save VMs as they run, to start others from",
		GroupID: groupVMs,
		Long: `Save VMs as they run: memory, devices and disks. Any number of others can be
started from a snapshot (fcvm clone --snapshot), each of which goes on where the
original was.`,
		Example: `  fcvm snapshot create web --name warm
  fcvm clone --snapshot warm -d -p 8081:80
  fcvm snapshot ls`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newSnapshotCreateCommand(a, runSnapshotCreate),
		newSnapshotLsCommand(a, runSnapshotLs),
		newSnapshotInspectCommand(a, runSnapshotInspect),
		newSnapshotRmCommand(a, runSnapshotRm),
		newSnapshotPruneCommand(a, runSnapshotPrune),
		newSnapshotRenameCommand(a, runSnapshotRename),
		newSnapshotExportCommand(a, runSnapshotExport),
		newSnapshotImportCommand(a, runSnapshotImport),
		newSnapshotVerifyCommand(a, runSnapshotVerify),
	)
	return cmd
}

func (a *app) openSnapshots() (*snapshot.Store, error) {
	st, err := a.openStore()
	if err != nil {
		return nil, err
	}
	return snapshotsOf(st.Layout()), nil
}

type snapshotCreateOptions struct {
	vm      string
	name    string
	stop    bool
	seconds int // until it is killed
}

func newSnapshotCreateCommand(a *app, run func(context.Context, *app, *snapshotCreateOptions) error) *cobra.Command {
	o := new(snapshotCreateOptions)
	cmd := &cobra.Command{
		Use:   "create [flags] VM",
		Short: "Take a snapshot of a VM that runs",
		Long: `Take a snapshot of a VM that runs or is paused, and print its name. The VM stands
still while its memory is saved, and goes on undisturbed; how long that took is
said on stderr. With --stop it ends then, as with fcvm stop.`,
		Example: `  fcvm snapshot create web
  fcvm snapshot create --name warm --stop web`,
		Args:              one("VM"),
		ValidArgsFunction: completeOneVM(a, liveVM),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.vm = args[0]
			return run(ctx, a, o)
		}),
	}
	cmd.Flags().StringVar(&o.name, "name", "", "`NAME` of the snapshot (default: the VM's, and a number)")
	cmd.Flags().BoolVar(&o.stop, "stop", false, "end the VM when the snapshot is taken")
	cmd.Flags().IntVarP(&o.seconds, "time", "t", defaultStopSeconds, "with --stop, `SECONDS` until it is killed; -1 for never")
	complete(cmd, "name", cobra.NoFileCompletions)
	return cmd
}

func runSnapshotCreate(ctx context.Context, a *app, o *snapshotCreateOptions) error {
	st, err := a.openStore()
	if err != nil {
		return err
	}
	e, err := st.Find(o.vm)
	if err = errors.Join(err, e.Err); err != nil {
		return err
	}
	done, err := o.take(ctx, st, e)
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(a.sys.Stderr, "fcvm: %s stood still for %s\n", nameOf(e), done.Pause.Round(time.Millisecond))
	if _, err := fmt.Fprintln(a.sys.Stdout, done.Name); err != nil || !o.stop {
		return err
	}
	timeout := time.Duration(o.seconds) * time.Second
	return askEnd(ctx, st, e, "stop", func(c *control.Client) error { return c.Stop(ctx, timeout) })
}

// take takes the snapshot, under the name that was given, or else one that is free,
// also when it is done.
func (o *snapshotCreateOptions) take(ctx context.Context, st *store.Store, e store.Entry) (done control.Snapshotted, err error) {
	snapshots := snapshotsOf(st.Layout())
	if err := snapshots.CheckFree(o.name); err != nil {
		return done, err
	}
	for {
		name := o.name
		if name == "" {
			if name, err = snapshots.FreeName(e.Record.Name); err != nil {
				return done, err
			}
		}
		err = ask(st, e, "take a snapshot of", func(c *control.Client) (err error) {
			done, err = c.Snapshot(ctx, control.SnapshotRequest{Name: name})
			return err
		})
		taken := err != nil && ctx.Err() == nil && errors.Is(snapshots.CheckFree(name), snapshot.ErrNameTaken)
		if !taken || o.name != "" {
			return done, err
		}
	}
}

// snapshotsOptions is what commands take that do one thing to several snapshots.
type snapshotsOptions struct{ snapshots []string }

// newSnapshotsCommand makes a command that does one thing to several snapshots.
func newSnapshotsCommand(a *app, cmd *cobra.Command, o *snapshotsOptions, run func(context.Context) error) *cobra.Command {
	cmd.Args = oneOrMore("snapshot")
	cmd.ValidArgsFunction = completeSnapshots(a)
	cmd.RunE = interruptible(func(ctx context.Context, args []string) error {
		o.snapshots = args
		return run(ctx)
	})
	return cmd
}

// eachSnapshot does something to each of the snapshots. One that fails does not
// keep it from the others.
func (a *app) eachSnapshot(ctx context.Context, refs []string, do func(*snapshot.Store, snapshot.Entry) error) error {
	s, err := a.openSnapshots()
	if err != nil {
		return err
	}
	var failed []error
	for _, ref := range refs {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e, err := s.Find(ref)
		if err == nil {
			err = do(s, e)
		}
		if err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

type snapshotRmOptions struct {
	snapshotsOptions
	force bool
}

func newSnapshotRmCommand(a *app, run func(context.Context, *app, *snapshotRmOptions) error) *cobra.Command {
	o := new(snapshotRmOptions)
	cmd := newSnapshotsCommand(a, &cobra.Command{
		Use:   "rm SNAPSHOT...",
		Short: "Remove snapshots that no VM runs from",
		Example: `  fcvm snapshot rm warm
  fcvm snapshot rm $(fcvm snapshot ls -q)`,
	}, &o.snapshotsOptions, func(ctx context.Context) error { return run(ctx, a, o) })
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "one that is not there is no error")
	return cmd
}

func runSnapshotRm(ctx context.Context, a *app, o *snapshotRmOptions) error {
	var failed []error
	for _, ref := range o.snapshots {
		err := a.eachSnapshot(ctx, []string{ref}, func(s *snapshot.Store, e snapshot.Entry) error {
			err := s.Remove(e.Manifest.ID)
			if l, lerr := a.layout(); err == nil && lerr == nil {
				sweepServers(l, s) // its server's log
			}
			return err
		})
		if o.force && errors.Is(err, snapshot.ErrNotFound) {
			continue
		}
		if errors.Is(err, snapshot.ErrInUse) {
			err = fmt.Errorf("remove snapshot %s: %w%s", ref, snapshot.ErrInUse, a.usersText(ref))
		}
		if err != nil {
			failed = append(failed, err)
			continue
		}
		_, _ = fmt.Fprintln(a.sys.Stdout, ref)
	}
	return errors.Join(failed...)
}

// usersText names those for whom a snapshot is kept: VMs that run from it, or its
// memory server.
func (a *app) usersText(ref string) string {
	st, err := a.openStore()
	if err != nil {
		return ""
	}
	e, err := snapshotsOf(st.Layout()).Find(ref)
	if err != nil {
		return ""
	}
	entries, err := st.List()
	if err != nil {
		return ""
	}
	var names []string
	for _, v := range entries {
		if v.Alive && v.Record.Resolved.Snapshot.ID == e.Manifest.ID {
			names = append(names, v.Record.Name)
		}
	}
	switch {
	case len(names) > 0:
		return " by " + strings.Join(names, ", ") + "; stop them first"
	case isServed(st.Layout(), e.Manifest.ID):
		return " by its memory server; end that with: fcvm memory-server stop " + e.Manifest.Title()
	}
	return ""
}

type snapshotRenameOptions struct{ snapshot, name string }

func newSnapshotRenameCommand(a *app, run func(context.Context, *app, *snapshotRenameOptions) error) *cobra.Command {
	o := new(snapshotRenameOptions)
	return &cobra.Command{
		Use:     "rename SNAPSHOT NAME",
		Short:   "Give a snapshot another name",
		Long:    `Give a snapshot another name, or one to a snapshot that has none: it is kept then.`,
		Example: `  fcvm snapshot rename web-1 warm`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return &usageError{command: cmd.CommandPath(), err: errors.New("it takes a snapshot and its new name")}
			}
			return nil
		},
		ValidArgsFunction: completeOneSnapshot(a),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.snapshot, o.name = args[0], args[1]
			return run(ctx, a, o)
		}),
	}
}

func runSnapshotRename(ctx context.Context, a *app, o *snapshotRenameOptions) error {
	s, err := a.openSnapshots()
	if err != nil {
		return err
	}
	if err := vm.CheckName(o.name); err != nil {
		return err
	}
	return s.Rename(ctx, o.snapshot, o.name)
}

func newSnapshotVerifyCommand(a *app, run func(context.Context, *app, *snapshotsOptions) error) *cobra.Command {
	o := new(snapshotsOptions)
	return newSnapshotsCommand(a, &cobra.Command{
		Use:     "verify SNAPSHOT...",
		Short:   "Read snapshots in full, and compare their checksums",
		Example: `  fcvm snapshot verify warm`,
	}, o, func(ctx context.Context) error { return run(ctx, a, o) })
}

func runSnapshotVerify(ctx context.Context, a *app, o *snapshotsOptions) error {
	return a.eachSnapshot(ctx, o.snapshots, func(s *snapshot.Store, e snapshot.Entry) error {
		return a.withHeld(s, e, func(snap *snapshot.Snapshot) error {
			if err := snap.Verify(ctx, true); err != nil {
				return err
			}
			_, err := fmt.Fprintf(a.sys.Stdout, "%s: all checksums are right\n", snap.Manifest.Title())
			return err
		})
	})
}

// withHeld runs f while the snapshot cannot be removed.
func (a *app) withHeld(s *snapshot.Store, e snapshot.Entry, f func(*snapshot.Snapshot) error) error {
	if e.Err != nil {
		return e.Err
	}
	snap, err := s.Hold(e.Manifest.ID)
	if err != nil {
		return err
	}
	defer snap.HandOver()
	return f(snap)
}

// completeSnapshots offers the names of snapshots.
func completeSnapshots(a *app) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		l, err := a.layout()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		if _, err := os.Stat(l.Snapshots()); err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		entries, _ := snapshot.New(l.Snapshots()).List() // a shell is no place for errors
		var names []cobra.Completion
		for _, e := range entries {
			m := &e.Manifest
			if strings.Contains(" "+strings.Join(args, " ")+" ", " "+m.Title()+" ") {
				continue
			}
			about := fmt.Sprintf("%s, of %s", printable(m.Needs.Image), m.Source.Name)
			switch {
			case m.Name != "" && strings.HasPrefix(m.Name, typed):
				names = append(names, cobra.CompletionWithDesc(m.Name, about))
			case typed != "" && strings.HasPrefix(m.ID, typed):
				names = append(names, cobra.CompletionWithDesc(m.ID, about))
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

func completeOneSnapshot(a *app) cobra.CompletionFunc {
	all := completeSnapshots(a)
	return func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return all(cmd, args, typed)
	}
}
