package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/inventory"
	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/volume"
)

func newSystemCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "system",
		Short:   "See what fcvm takes of the disk, and give it back",
		GroupID: groupHost,
		Long:    `See what the data directory takes of the disk, and remove what is not used.`,
		Example: `  fcvm system df
  fcvm system prune`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newSystemDfCommand(a, runSystemDf), newSystemPruneCommand(a, runSystemPrune))
	return cmd
}

type dfOptions struct {
	verbose bool
	format  string
}

func newSystemDfCommand(a *app, run func(context.Context, *app, *dfOptions) error) *cobra.Command {
	o := new(dfOptions)
	cmd := &cobra.Command{
		Use:   "df [flags]",
		Short: "Show what takes how much of the disk",
		Long: `Show what the data directory takes of the disk, by kind: how many there are, how
many are in use, and how much "fcvm system prune --all" would free. Sizes are
what the files take, without holes.`,
		Example: `  fcvm system df
  fcvm system df -v
  fcvm system df --format json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              interruptible(func(ctx context.Context, _ []string) error { return run(ctx, a, o) }),
	}
	cmd.Flags().BoolVarP(&o.verbose, "verbose", "v", false, "show each thing")
	addFormat(cmd, &o.format, "Kind", "Total", "Active", "Size", "Reclaimable")
	cmd.MarkFlagsMutuallyExclusive("verbose", "format")
	return cmd
}

func (a *app) openInventory() (*inventory.Inventory, error) {
	st, err := a.openStore()
	if err != nil {
		return nil, err
	}
	images, err := a.openImages()
	if err != nil {
		return nil, err
	}
	return &inventory.Inventory{Store: st, Images: images, Setup: newSetup(st.Layout()), Snapshots: snapshotsOf(st.Layout()), Volumes: volume.NewStore(st.Layout())}, nil
}

// dfRow is all there is of one kind.
type dfRow struct {
	Kind        inventory.Kind `json:"kind"`
	Total       int            `json:"total"`
	Active      int            `json:"active"`
	Size        int64          `json:"size"`        // bytes
	Reclaimable int64          `json:"reclaimable"` // bytes
}

// runSystemDf shows what it could find even if that is not all.
func runSystemDf(_ context.Context, a *app, o *dfOptions) error {
	f, err := parseFormat(o.format)
	if err != nil {
		return err
	}
	inv, err := a.openInventory()
	if err != nil {
		return err
	}
	items, listErr := inv.List()
	if o.verbose {
		err = printItems(a.sys.Stdout, items)
	} else {
		err = writeDf(a.sys.Stdout, f, items)
	}
	if err != nil {
		return err
	}
	return listErr
}

func writeDf(w io.Writer, f format, items []inventory.Item) error {
	unused := inventory.Unused(items, true)
	var rows []dfRow
	for _, kind := range inventory.Kinds {
		row := dfRow{Kind: kind}
		for _, i := range items {
			if i.Kind == kind {
				row.Total++
				row.Size += i.Size
				if i.Active {
					row.Active++
				}
			}
		}
		for _, i := range unused {
			if i.Kind == kind {
				row.Reclaimable += i.Size
			}
		}
		rows = append(rows, row)
	}
	if !f.plain() {
		return writeItems(w, f, rows)
	}
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(t, "KIND\tTOTAL\tIN USE\tSIZE\tRECLAIMABLE")
	for _, r := range rows {
		_, _ = fmt.Fprintln(t, strings.Join([]string{
			string(r.Kind), strconv.Itoa(r.Total), strconv.Itoa(r.Active), progress.FormatBytes(r.Size), progress.FormatBytes(r.Reclaimable),
		}, "\t"))
	}
	return t.Flush()
}

// printItems lists things with the largest of each kind first.
func printItems(w io.Writer, items []inventory.Item) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(t, "KIND\tID\tNAME\tSTATE\tSIZE\tVMS")
	for _, kind := range inventory.Kinds {
		of := slices.DeleteFunc(slices.Clone(items), func(i inventory.Item) bool { return i.Kind != kind })
		slices.SortStableFunc(of, func(a, b inventory.Item) int { return int(min(1, max(-1, b.Size-a.Size))) })
		for _, i := range of {
			_, _ = fmt.Fprintln(t, strings.Join([]string{
				string(i.Kind), shortID(i.ID), imageText(i.Name), i.State, progress.FormatBytes(i.Size), strconv.Itoa(len(i.Users)),
			}, "\t"))
		}
	}
	return t.Flush()
}

// shortID is a digest as people see it, and any other id as it is.
func shortID(id string) string {
	const digits = 12
	if hex, ok := strings.CutPrefix(id, "sha256:"); ok {
		return hex[:min(len(hex), digits)]
	}
	return shorten(id)
}
