package cli

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/inventory"
	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/usage"
	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/volume"
)

func newVolumeCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "volume",
		Short:   "Make, list and remove named volumes",
		GroupID: groupVMs,
		Long: `Make, list and remove named volumes: disks that outlive the VMs that use them. A
volume is written by one VM at a time, or read by many; fcvm run -v NAME:DIR
makes one that is not there.`,
		Example: `  fcvm volume create --size 20g data
  fcvm run -v data:/var/lib/postgresql/data postgres
  fcvm run -v data:/backup:ro alpine ls /backup`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newVolumeCreateCommand(a), newVolumeLsCommand(a), newVolumeInspectCommand(a), newVolumeRmCommand(a), newVolumePruneCommand(a))
	return cmd
}

// openVolumes returns the volumes of the data directory, which it makes.
func (a *app) openVolumes() (*volume.Store, error) {
	st, err := a.openStore()
	if err != nil {
		return nil, err
	}
	return volume.NewStore(st.Layout()), nil
}

func newVolumeCreateCommand(a *app) *cobra.Command {
	var (
		size   string
		labels []string
	)
	var cmd *cobra.Command
	cmd = &cobra.Command{
		Use:   "create [flags] [NAME]",
		Short: "Make a volume",
		Long: `Make an empty volume, an ext4 disk that costs what is written to it, and print its
name. Without a name it gets a random one. One that is there stays as it is; that is
an error if it has another size than was asked for.`,
		Example:           `  fcvm volume create --size 20g data`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: interruptible(func(ctx context.Context, args []string) error {
			mib, err := volume.ParseSize(size)
			if err != nil {
				return fmt.Errorf("%w: --size: %w", vm.ErrInvalid, err)
			}
			info := volume.Info{SizeMiB: mib}
			if info.Labels, err = parseLabels(labels); err != nil {
				return err
			}
			if len(args) > 0 {
				info.Name = args[0]
			} else {
				var b [16]byte
				_, _ = rand.Read(b[:]) // never fails (crypto/rand)
				info.Name = hex.EncodeToString(b[:])
			}
			s, err := a.openVolumes()
			if err != nil {
				return err
			}
			err = s.Create(ctx, info)
			if errors.Is(err, volume.ErrExists) {
				err = sameVolume(s, info, cmd.Flags().Changed("size"), err)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.sys.Stdout, info.Name)
			return err
		}),
	}
	cmd.Flags().StringVar(&size, "size", fmt.Sprintf("%dg", volume.DefaultSizeMiB>>10), "how much can be in it: `SIZE`, as 512m, 20g")
	cmd.Flags().StringArrayVarP(&labels, "label", "l", nil, "label it: `KEY=VALUE`")
	return cmd
}

// sameVolume lets a volume that is there stand for the one that was to be made, as
// Docker does; exists says that it is there.
func sameVolume(s *volume.Store, asked volume.Info, sized bool, exists error) error {
	is, err := s.Get(asked.Name)
	if err != nil {
		return errors.Join(exists, err)
	}
	if sized && is.SizeMiB != asked.SizeMiB {
		return fmt.Errorf("%w: it has %d MiB, not %d: leave out --size to take it as it is, or remove it with: fcvm volume rm %s", exists, is.SizeMiB, asked.SizeMiB, asked.Name)
	}
	return nil
}

// volumeRow is a volume as a listing shows it.
type volumeRow struct {
	Name    string            `json:"name"`
	SizeMiB int               `json:"size_mib"`
	Used    int64             `json:"used"` // bytes of the host's disk
	InUse   bool              `json:"in_use"`
	Created time.Time         `json:"created"`
	Labels  map[string]string `json:"labels,omitempty"`
	Path    string            `json:"path"`
}

func volumeRowOf(s *volume.Store, i volume.Info) volumeRow {
	used, _ := usage.Disk(s.Path(i.Name)) // one that has just gone takes none
	return volumeRow{i.Name, i.SizeMiB, used, s.InUse(i.Name), i.Created, i.Labels, s.Path(i.Name)}
}

func newVolumeLsCommand(a *app) *cobra.Command {
	var (
		quiet bool
		form  string
	)
	cmd := &cobra.Command{
		Use:               "ls [flags]",
		Aliases:           []string{"list"},
		Short:             "List volumes",
		Long:              "List named volumes: how much can be in each, what it takes of the host's disk,\nand whether a VM that runs uses it.",
		Example:           `  fcvm volume ls`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: interruptible(func(context.Context, []string) error {
			f, err := parseFormat(form)
			if err != nil {
				return err
			}
			s, err := a.openVolumes()
			if err != nil {
				return err
			}
			list, listErr := s.List()
			rows := make([]volumeRow, 0, len(list))
			for _, i := range list {
				rows = append(rows, volumeRowOf(s, i))
			}
			return errors.Join(a.writeVolumes(f, quiet, rows), listErr)
		}),
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print names only")
	addFormat(cmd, &form, "Name", "SizeMiB", "Used", "InUse", "Created", "Labels", "Path")
	cmd.MarkFlagsMutuallyExclusive("quiet", "format")
	return cmd
}

func (a *app) writeVolumes(f format, quiet bool, rows []volumeRow) error {
	if !quiet && !f.plain() {
		return writeItems(a.sys.Stdout, f, rows)
	}
	t := tabwriter.NewWriter(a.sys.Stdout, 0, 0, 3, ' ', 0)
	if !quiet {
		_, _ = fmt.Fprintln(t, "NAME\tSIZE\tON DISK\tIN USE\tCREATED")
	}
	for _, r := range rows {
		if quiet {
			_, _ = fmt.Fprintln(t, r.Name)
			continue
		}
		used := "no"
		if r.InUse {
			used = "yes"
		}
		_, _ = fmt.Fprintln(t, strings.Join([]string{
			r.Name, progress.FormatBytes(int64(r.SizeMiB) << 20), progress.FormatBytes(r.Used), used, r.Created.Local().Format(time.DateTime),
		}, "\t"))
	}
	return t.Flush()
}

// completeVolumes offers the names of volumes.
func (a *app) completeVolumes(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	s, err := a.openVolumes()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	list, _ := s.List()
	var names []string
	for _, i := range list {
		names = append(names, i.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func newVolumeInspectCommand(a *app) *cobra.Command {
	var form string
	cmd := &cobra.Command{
		Use:               "inspect [flags] NAME...",
		Short:             "Show what is known of volumes",
		Long:              `Show what is known of named volumes, as JSON or by a template.`,
		Example:           `  fcvm volume inspect data --format '{{.Path}}'`,
		Args:              oneOrMore("volume"),
		ValidArgsFunction: a.completeVolumes,
		RunE: interruptible(func(_ context.Context, args []string) error {
			f, err := parseFormat(form)
			if err != nil {
				return err
			}
			if f.plain() {
				f.json = true
			}
			s, err := a.openVolumes()
			if err != nil {
				return err
			}
			var (
				rows   []volumeRow
				failed []error
			)
			for _, name := range args {
				i, err := s.Get(name)
				if err != nil {
					failed = append(failed, err)
					continue
				}
				rows = append(rows, volumeRowOf(s, i))
			}
			return errors.Join(append([]error{writeItems(a.sys.Stdout, f, rows)}, failed...)...)
		}),
	}
	addFormat(cmd, &form, "Name", "SizeMiB", "Used", "InUse", "Created", "Labels", "Path")
	return cmd
}

func newVolumeRmCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "rm [flags] NAME...",
		Aliases:           []string{"remove"},
		Short:             "Remove volumes",
		Long:              "Remove named volumes with all that is in them. One that a running VM uses, or that\na snapshot needs, stays, and is an error.",
		Example:           `  fcvm volume rm data`,
		Args:              oneOrMore("volume"),
		ValidArgsFunction: a.completeVolumes,
		RunE: interruptible(func(_ context.Context, args []string) error {
			inv, err := a.openInventory()
			if err != nil {
				return err
			}
			var failed []error
			for _, name := range args {
				err := inv.RemoveVolume(name)
				if force && errors.Is(err, volume.ErrNotFound) {
					continue
				}
				if err != nil {
					failed = append(failed, err)
					continue
				}
				_, _ = fmt.Fprintln(a.sys.Stdout, name)
			}
			return errors.Join(failed...)
		}),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "one that is not there is no error")
	return cmd
}

func newVolumePruneCommand(a *app) *cobra.Command {
	o := new(pruneOptions)
	cmd := &cobra.Command{
		Use:               "prune [flags]",
		Short:             "Remove volumes that are not used",
		Long:              `Remove all named volumes that no VM uses, after asking, with all that is in them.`,
		Example:           `  fcvm volume prune --force`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			inv, err := a.openInventory()
			if err != nil {
				return err
			}
			inv.PruneVolumes = true
			return a.prune(ctx, inv, o, inventory.Volume)
		}),
	}
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "do not ask")
	cmd.Flags().BoolVarP(&o.dryRun, "dry-run", "n", false, "only say what would be removed")
	return cmd
}
