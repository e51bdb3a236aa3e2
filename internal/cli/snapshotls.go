package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/usage"
)

type snapshotLsOptions struct {
	all    bool
	quiet  bool
	format string
}

func newSnapshotLsCommand(a *app, run func(context.Context, *app, *snapshotLsOptions) error) *cobra.Command {
	o := new(snapshotLsOptions)
	cmd := &cobra.Command{
		Use:     "ls [flags]",
		Aliases: []string{"list"},
		Short:   "List snapshots",
		Long: `List the snapshots that somebody has asked for; with -a also those that fcvm has
taken by itself to start VMs sooner. One that cannot be read is always listed, as
broken. SIZE is what it takes of the disk, without holes.`,
		Example: `  fcvm snapshot ls
  fcvm snapshot ls --format '{{.Name}} {{.Image}}'`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              interruptible(func(ctx context.Context, _ []string) error { return run(ctx, a, o) }),
	}
	cmd.Flags().BoolVarP(&o.all, "all", "a", false, "also list those that were taken automatically")
	cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "print names only, or ids of those that have none")
	addFormat(cmd, &o.format, "ID", "Name", "Source", "Image", "Driver", "CPUs", "MemoryMiB", "Created", "Age", "Size", "InUse", "Automatic", "Error")
	cmd.MarkFlagsMutuallyExclusive("quiet", "format")
	return cmd
}

// snapshotItem is one snapshot as `fcvm snapshot ls` shows it.
type snapshotItem struct {
	ID        string    `json:"id"`
	Name      string    `json:"name,omitempty"`
	Source    string    `json:"source"` // name of the VM
	Image     string    `json:"image"`
	Driver    string    `json:"driver"`
	CPUs      int       `json:"cpus"`
	MemoryMiB int       `json:"memory_mib"`
	Created   time.Time `json:"created"`
	Age       string    `json:"age"`
	Size      int64     `json:"size"` // bytes, without holes
	InUse     bool      `json:"in_use"`
	Automatic bool      `json:"automatic,omitempty"`
	Error     string    `json:"error,omitempty"`
}

func newSnapshotItem(e snapshot.Entry, now time.Time) snapshotItem {
	m := &e.Manifest
	i := snapshotItem{
		ID: m.ID, Name: m.Name, Source: m.Source.Name, Image: m.Needs.Image, Driver: m.Needs.Driver,
		CPUs: m.Needs.CPUs, MemoryMiB: m.Needs.MemoryMiB, Created: m.Created, Age: age(m.Created, now),
		InUse: e.InUse, Automatic: m.Automatic(),
	}
	if size, err := usage.Disk(e.Dir); err == nil {
		i.Size = size
	}
	if e.Err != nil {
		i.Error, i.Age = e.Err.Error(), ""
	}
	return i
}

func runSnapshotLs(_ context.Context, a *app, o *snapshotLsOptions) error {
	f, err := parseFormat(o.format)
	if err != nil {
		return err
	}
	s, err := a.openSnapshots()
	if err != nil {
		return err
	}
	entries, err := s.List()
	if err != nil {
		return err
	}
	var items []snapshotItem
	now := time.Now()
	for _, e := range entries {
		if o.all || !e.Manifest.Automatic() {
			items = append(items, newSnapshotItem(e, now))
		}
	}
	switch {
	case o.quiet:
		for _, i := range items {
			_, _ = fmt.Fprintln(a.sys.Stdout, i.title())
		}
		return nil
	case !f.plain():
		return writeItems(a.sys.Stdout, f, items)
	}
	t := tabwriter.NewWriter(a.sys.Stdout, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(t, "ID\tNAME\tOF\tIMAGE\tMEMORY\tDRIVER\tAGE\tSIZE\tSTATE")
	for _, i := range items {
		_, _ = fmt.Fprintln(t, strings.Join([]string{
			i.ID, i.Name, i.Source, imageText(i.Image), fmt.Sprintf("%dm", i.MemoryMiB), i.Driver, i.Age, progress.FormatBytes(i.Size), i.state(),
		}, "\t"))
	}
	return t.Flush()
}

func (i snapshotItem) title() string {
	if i.Name != "" {
		return i.Name
	}
	return i.ID
}

func (i snapshotItem) state() string {
	switch {
	case i.Error != "":
		return printable("broken: " + i.Error)
	case i.InUse:
		return "in use"
	case i.Automatic:
		return "automatic"
	}
	return ""
}

type snapshotInspectOptions struct {
	snapshotsOptions
	format string
}

func newSnapshotInspectCommand(a *app, run func(context.Context, *app, *snapshotInspectOptions) error) *cobra.Command {
	o := new(snapshotInspectOptions)
	cmd := newSnapshotsCommand(a, &cobra.Command{
		Use:   "inspect [flags] SNAPSHOT...",
		Short: "Show all that is known of snapshots, as JSON",
		Long: `Print all that is known of snapshots as a JSON array: of which VM one was taken
(.Source), what it needs of the host (.Needs), the VM's settings (.Spec), its
files with their checksums (.Files), and for how long the VM stood still (.Pause,
in nanoseconds).`,
		Example: `  fcvm snapshot inspect warm
  fcvm snapshot inspect --format '{{.Needs.Driver}} {{.Needs.VMMVersion}}' warm`,
	}, &o.snapshotsOptions, func(ctx context.Context) error { return run(ctx, a, o) })
	addFormatAs(cmd, &o.format, "f")
	return cmd
}

// snapshotDetails is a manifest with what else there is to know.
type snapshotDetails struct {
	snapshot.Manifest

	Directory string `json:"directory"`
	DiskUsage int64  `json:"disk_usage"` // bytes, without holes
	InUse     bool   `json:"in_use"`
	Error     string `json:"error,omitempty"`
}

// runSnapshotInspect prints those that were found even when others were not.
func runSnapshotInspect(ctx context.Context, a *app, o *snapshotInspectOptions) error {
	f, err := parseFormat(o.format)
	if err != nil {
		return err
	}
	var (
		found  []snapshotDetails
		broken []error
	)
	err = a.eachSnapshot(ctx, o.snapshots, func(_ *snapshot.Store, e snapshot.Entry) error {
		d := snapshotDetails{Manifest: e.Manifest, Directory: e.Dir, InUse: e.InUse}
		d.DiskUsage, _ = usage.Disk(e.Dir) // what cannot be looked at counts as nothing
		if e.Err != nil {
			d.Error = e.Err.Error()
			broken = append(broken, fmt.Errorf("snapshot %s: %w", e.Manifest.ID, e.Err))
		}
		found = append(found, d)
		return nil
	})
	if f.plain() {
		f.json = true
	}
	return errors.Join(append([]error{writeItems(a.sys.Stdout, f, found), err}, broken...)...)
}
