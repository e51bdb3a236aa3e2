package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/inventory"
	"github.com/fcvm/fcvm/internal/progress"
)

// maxAnswer bounds what is read of the answer to a question, bytes.
const maxAnswer = 1024

type pruneOptions struct {
	all     bool
	force   bool
	dryRun  bool
	volumes bool
}

func newSystemPruneCommand(a *app, run func(context.Context, *app, *pruneOptions) error) *cobra.Command {
	o := new(pruneOptions)
	cmd := &cobra.Command{
		Use:   "prune [flags]",
		Short: "Remove what is not used",
		Long: `Remove what is not used, after asking: VMs that have ended, with their records,
logs and disks; snapshots that were taken automatically; images that no
reference points at any more; kernels, guest roots and VMMs that others have
taken the place of; and what interrupted downloads and setups have left. With
--all also every image that no VM uses, templates of scratch disks, all
snapshots, and VMs whose record is broken. Named volumes go only with
--volumes.

Nothing goes that a VM uses which runs, or which is kept, or that a snapshot
needs. It is safe beside other commands: what they come to use meanwhile stays.`,
		Example: `  fcvm system prune
  fcvm system prune --all --dry-run
  fcvm system prune --all --force`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              interruptible(func(ctx context.Context, _ []string) error { return run(ctx, a, o) }),
	}
	cmd.Flags().BoolVarP(&o.all, "all", "a", false, "remove all that no VM uses, not only what is outdated")
	cmd.Flags().BoolVar(&o.volumes, "volumes", false, "remove named volumes, too, that no VM uses, with all that is in them")
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "do not ask")
	cmd.Flags().BoolVarP(&o.dryRun, "dry-run", "n", false, "only say what would be removed")
	return cmd
}

// runSystemPrune removes what it can, even if something cannot be listed or
// removed.
func runSystemPrune(ctx context.Context, a *app, o *pruneOptions) error {
	inv, err := a.openInventory()
	if err != nil {
		return err
	}
	inv.PruneVolumes = o.volumes
	return a.prune(ctx, inv, o, inventory.Kinds...)
}

// prune removes what is not used of these kinds.
func (a *app) prune(ctx context.Context, inv *inventory.Inventory, o *pruneOptions, kinds ...inventory.Kind) error {
	items, listErr := inv.List()
	unused := slices.DeleteFunc(inventory.Unused(items, o.all), func(i inventory.Item) bool { return !slices.Contains(kinds, i.Kind) })
	return errors.Join(listErr, a.removeUnused(ctx, unused, o.force, o.dryRun))
}

// removeUnused asks, unless it is not to, and removes what nobody uses.
func (a *app) removeUnused(ctx context.Context, unused []inventory.Item, force, dryRun bool) error {
	if len(unused) == 0 {
		_, err := fmt.Fprintln(a.sys.Stdout, "Nothing to remove.")
		return err
	}
	if !force {
		if err := announce(a.sys.Stdout, unused); err != nil || dryRun {
			return err
		}
		if !a.confirmed(ctx, "Remove all of that?") {
			return errors.Join(context.Cause(ctx), errNotConfirmed)
		}
	}
	return removeItems(ctx, a.sys.Stdout, unused, dryRun)
}

// errNotConfirmed: the answer was not yes.
var errNotConfirmed = errors.New("nothing was removed; answer yes, or leave the question out with --force")

func announce(w io.Writer, unused []inventory.Item) error {
	_, _ = fmt.Fprintln(w, "This is not used:")
	_, err := fmt.Fprintln(w)
	return errors.Join(err, printItems(w, unused), sayTotal(w, unused))
}

func sayTotal(w io.Writer, items []inventory.Item) error {
	var total int64
	for _, i := range items {
		total += i.Size
	}
	_, err := fmt.Fprintf(w, "\n%s in all.\n", progress.FormatBytes(total))
	return err
}

// removeItems says of each what has become of it, and how much is free now.
func removeItems(ctx context.Context, w io.Writer, unused []inventory.Item, dryRun bool) error {
	var (
		freed  int64
		failed []error
	)
	verb := "Removed"
	if dryRun {
		verb = "Would remove"
	}
	for _, i := range unused {
		if ctx.Err() != nil {
			failed = append(failed, context.Cause(ctx))
			break
		}
		removed, err := true, error(nil)
		if !dryRun {
			removed, err = i.Remove(ctx)
		}
		switch {
		case err != nil:
			failed = append(failed, fmt.Errorf("remove %s: %w", i, err))
		case removed:
			freed += i.Size
			_, _ = fmt.Fprintf(w, "%s %s\n", verb, printable(i.String()))
		default:
			_, _ = fmt.Fprintf(w, "Kept %s: it is in use now\n", printable(i.String()))
		}
	}
	done := "Freed"
	if dryRun {
		done = "Would free"
	}
	_, err := fmt.Fprintf(w, "%s %s\n", done, progress.FormatBytes(freed))
	return errors.Join(append(failed, err)...)
}

// confirmed asks a question, and is answered with no when nobody is there.
func (a *app) confirmed(ctx context.Context, question string) bool {
	_, _ = fmt.Fprintf(a.sys.Stderr, "%s [y/N] ", question)
	answer := make(chan string, 1)
	go func() { // a read from a terminal does not end with the context
		line, _ := bufio.NewReader(io.LimitReader(a.sys.Stdin, maxAnswer)).ReadString('\n')
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case <-ctx.Done():
		return false
	case s := <-answer:
		return s == "y" || s == "yes"
	}
}
