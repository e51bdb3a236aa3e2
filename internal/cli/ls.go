package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/vm"
)

type lsOptions struct {
	all    bool
	quiet  bool
	format string
}

func newLsCommand(a *app, run func(context.Context, *app, *lsOptions) error) *cobra.Command {
	o := new(lsOptions)
	cmd := &cobra.Command{
		Use:     "ls [flags]",
		Aliases: []string{"ps", "list"},
		Short:   "List VMs",
		GroupID: groupVMs,
		Long:    `List the VMs that run; with -a also those that have ended and were kept (--rm=false).`,
		Example: `  fcvm ls -a
  fcvm ls --format '{{.Name}} {{.Status}}'
  fcvm rm $(fcvm ls -aq)`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              interruptible(func(ctx context.Context, _ []string) error { return run(ctx, a, o) }),
	}
	cmd.Flags().BoolVarP(&o.all, "all", "a", false, "also list VMs that have ended")
	cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "print ids only")
	addFormat(cmd, &o.format, "ID", "Name", "Image", "Command", "Status", "ExitCode", "Created", "Ports", "Labels",
		"Driver", "Network", "CPUs", "MemoryMiB", "PID", "Reason")
	return cmd
}

// vmItem is one VM as `fcvm ls` shows it.
type vmItem struct {
	ID        string            `json:"id"`
	Name      string            `json:"name"`
	Image     string            `json:"image"`
	Command   []string          `json:"command"`
	Status    vm.Status         `json:"status"`
	ExitCode  *int              `json:"exit_code,omitempty"`
	Created   time.Time         `json:"created"`
	Ports     []string          `json:"ports"`
	Labels    map[string]string `json:"labels"`
	Driver    string            `json:"driver"`
	Network   string            `json:"network"`
	CPUs      int               `json:"cpus"`
	MemoryMiB int               `json:"memory_mib"`
	PID       int               `json:"pid,omitempty"` // of the fcvm process that runs it
	Reason    string            `json:"reason,omitempty"`
}

// statusBroken is shown for a VM whose record cannot be read.
const statusBroken vm.Status = "broken"

func newVMItem(e store.Entry) vmItem {
	r := e.Record
	if e.Err != nil {
		return vmItem{ID: r.ID, Status: statusBroken, Reason: e.Err.Error()}
	}
	i := vmItem{
		ID: r.ID, Name: r.Name, Image: r.Spec.Image, Command: r.Resolved.Command, Status: r.Status, ExitCode: r.ExitCode,
		Created: r.Created, Ports: r.Resolved.Ports, Labels: r.Spec.Labels, Driver: r.Resolved.Driver,
		Network: r.Resolved.Network, CPUs: r.Spec.CPUs, MemoryMiB: r.Spec.MemoryMiB, Reason: r.Reason,
	}
	if e.Alive {
		i.PID = r.Supervisor.PID
	}
	return i
}

func runLs(_ context.Context, a *app, o *lsOptions) error {
	f, err := parseFormat(o.format)
	if err != nil {
		return err
	}
	st, err := a.openStore()
	if err != nil {
		return err
	}
	entries, err := st.List()
	if err != nil {
		return err
	}
	var items []vmItem
	for _, e := range entries {
		if o.all || e.Err != nil || !e.Record.Status.Final() {
			items = append(items, newVMItem(e))
		}
	}
	switch {
	case o.quiet:
		for _, i := range items {
			if _, err := fmt.Fprintln(a.sys.Stdout, i.ID); err != nil {
				return err
			}
		}
		return nil
	case f.plain():
		return printVMs(a.sys.Stdout, items, time.Now())
	}
	return writeItems(a.sys.Stdout, f, items)
}

func printVMs(w io.Writer, items []vmItem, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(t, "ID\tNAME\tIMAGE\tCOMMAND\tCREATED\tSTATUS\tPORTS")
	for _, i := range items {
		_, _ = fmt.Fprintln(t, strings.Join([]string{
			i.ID, i.Name, i.Image, shorten(strings.Join(i.Command, " ")), ago(i.Created, now), statusText(i), strings.Join(i.Ports, ", "),
		}, "\t"))
	}
	return t.Flush()
}

func statusText(i vmItem) string {
	switch {
	case i.Status == statusBroken:
		return printable(shorten(string(i.Status) + ": " + i.Reason))
	case i.ExitCode != nil:
		return string(i.Status) + " (" + strconv.Itoa(*i.ExitCode) + ")"
	}
	return string(i.Status)
}

// shorten makes a value fit a column, on one line.
func shorten(s string) string {
	const limit = 40
	s = strings.Join(strings.Fields(printable(s)), " ")
	if r := []rune(s); len(r) > limit {
		return string(r[:limit-1]) + "…"
	}
	return s
}

// ago says how long ago t was, in one unit.
func ago(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	const day = 24 * time.Hour
	d := max(0, now.Sub(t))
	switch {
	case d >= 2*day:
		return fmt.Sprintf("%d days ago", d/day)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours ago", d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d minutes ago", d/time.Minute)
	}
	return fmt.Sprintf("%d seconds ago", d/time.Second)
}

// completeVMs offers the names of VMs that the command can take.
func completeVMs(a *app, want func(store.Entry) bool) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return vmNames(a, args, typed, want), cobra.ShellCompDirectiveNoFileComp
	}
}

// vmNames lists the names that begin with what was typed, without those given
// already, with a description; an id once one was begun. The shell is no place
// for errors.
func vmNames(a *app, given []string, typed string, want func(store.Entry) bool) []cobra.Completion {
	l, err := a.layout()
	if err != nil {
		return nil
	}
	if _, err := os.Stat(l.VMs()); err != nil {
		return nil // and a key press makes no directories
	}
	st, err := store.Open(l)
	if err != nil {
		return nil
	}
	entries, err := st.List()
	if err != nil {
		return nil
	}
	var names []cobra.Completion
	for _, e := range entries {
		r := e.Record
		if e.Err != nil || !want(e) || contains(given, r) {
			continue
		}
		about := fmt.Sprintf("%s, %s", printable(r.Spec.Image), r.Status)
		switch {
		case strings.HasPrefix(r.Name, typed):
			names = append(names, cobra.CompletionWithDesc(r.Name, about))
		case strings.HasPrefix(r.ID, typed):
			names = append(names, cobra.CompletionWithDesc(r.ID, about))
		}
	}
	return names
}

func contains(given []string, r vm.Record) bool {
	for _, g := range given {
		if g == r.Name || g == r.ID {
			return true
		}
	}
	return false
}

func anyVM(store.Entry) bool     { return true }
func endedVM(e store.Entry) bool { return !e.Alive }
