package cli

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/vm"
)

type lsOptions struct {
	all     bool
	quiet   bool
	filters []string
	format  string
}

func newLsCommand(a *app, run func(context.Context, *app, *lsOptions) error) *cobra.Command {
	o := new(lsOptions)
	cmd := &cobra.Command{
		Use:     "ls [flags]",
		Aliases: []string{"ps", "list"},
		Short:   "List VMs",
		GroupID: groupVMs,
		Long: `List the VMs that run; with -a also those that have ended and were kept (-d,
--restart, --logs file, --rm=false). One whose record cannot be read is always
listed, as broken.

A filter is KEY=VALUE with one of the keys id, name, image, status, health,
driver, network, label (KEY or KEY=VALUE) and exited (a code). id, name and image
match a part. Of several filters with the same key one has to match (with label:
all), and of different keys all. A filter for a status that a VM ends with
(exited, failed) implies -a, and so does exited.`,
		Example: `  fcvm ls -a
  fcvm ls --filter status=running --filter label=app=web
  fcvm ls --format 'table {{.Name}}\t{{.Status}}'
  fcvm rm $(fcvm ls -aq)`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              interruptible(func(ctx context.Context, _ []string) error { return run(ctx, a, o) }),
	}
	cmd.Flags().BoolVarP(&o.all, "all", "a", false, "also list VMs that have ended")
	cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "print ids only")
	cmd.Flags().StringArrayVarP(&o.filters, "filter", "f", nil, "list only those that fit `KEY=VALUE`")
	complete(cmd, "filter", completeFilter(a))
	addFormat(cmd, &o.format, "ID", "Name", "Image", "Command", "Status", "Ready", "Health", "Restarts", "ExitCode", "Created", "Age",
		"Ports", "Labels", "Driver", "Network", "CPUs", "MemoryMiB", "PID", "Reason")
	cmd.MarkFlagsMutuallyExclusive("quiet", "format")
	return cmd
}

// vmItem is one VM as `fcvm ls` shows it.
type vmItem struct {
	ID        string            `json:"id"`
	Name      string            `json:"name"`
	Image     string            `json:"image"`
	Command   []string          `json:"command"`
	Status    vm.Status         `json:"status"`
	Ready     bool              `json:"ready"`
	Health    vm.HealthState    `json:"health,omitempty"`
	Restarts  int               `json:"restarts,omitempty"`
	ExitCode  *int              `json:"exit_code,omitempty"`
	Created   time.Time         `json:"created"`
	Age       string            `json:"age"`
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

func newVMItem(e store.Entry, now time.Time) vmItem {
	r := e.Record
	if e.Err != nil {
		return vmItem{ID: r.ID, Status: statusBroken, Reason: e.Err.Error(), Command: []string{}, Ports: []string{}, Labels: map[string]string{}}
	}
	i := vmItem{
		ID: r.ID, Name: r.Name, Image: r.Spec.Image, Command: append([]string{}, r.Resolved.Command...), Status: r.Status, ExitCode: r.ExitCode,
		Ready: r.Ready, Health: r.Health, Restarts: r.Restarts,
		Created: r.Created, Age: age(r.Created, now), Ports: append([]string{}, r.Resolved.Ports...), Labels: r.Spec.Labels, Driver: r.Resolved.Driver,
		Network: r.Resolved.Network, CPUs: r.Spec.CPUs, MemoryMiB: r.Spec.MemoryMiB, Reason: r.Reason,
	}
	if i.Labels == nil {
		i.Labels = map[string]string{} // {}, not null
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
	filter, err := parseFilter(o.filters)
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
	now := time.Now()
	all := o.all || filter.wantsEnded()
	for _, e := range entries {
		i := newVMItem(e, now)
		if (all || e.Err != nil || !e.Record.Status.Final()) && filter.fits(&i) {
			items = append(items, i)
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
		return printVMs(a.sys.Stdout, items)
	}
	return writeItems(a.sys.Stdout, f, items)
}

func printVMs(w io.Writer, items []vmItem) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(t, "ID\tNAME\tIMAGE\tSTATUS\tHEALTH\tAGE\tCPUS\tMEMORY\tPORTS\tDRIVER")
	for _, i := range items {
		cpus, mem := "", ""
		if i.CPUs > 0 {
			cpus, mem = strconv.Itoa(i.CPUs), progress.FormatBytes(int64(i.MemoryMiB)<<20)
		}
		_, _ = fmt.Fprintln(t, strings.Join([]string{
			i.ID, i.Name, imageText(i.Image), statusText(i), healthText(i), i.Age, cpus, mem, strings.Join(shownPorts(i.Ports), ", "), i.Driver,
		}, "\t"))
	}
	return t.Flush()
}

func statusText(i vmItem) string {
	switch {
	case i.Status == statusBroken:
		return shortenTo(string(i.Status)+": "+recordTrouble(i.Reason), 2*shortLimit)
	case i.ExitCode != nil:
		return string(i.Status) + " (" + strconv.Itoa(*i.ExitCode) + ")"
	}
	return string(i.Status)
}

// recordTrouble is what is wrong with a record, without where it lies: that is
// told by fcvm inspect.
func recordTrouble(reason string) string {
	if _, trouble, ok := strings.Cut(reason, filepath.Base(paths.VMDir("").Record())); ok {
		return strings.TrimLeft(trouble, ": ")
	}
	return reason
}

// imageText makes a reference fit a column. Of a file's the directory says
// least.
func imageText(ref string) string {
	if kind, path, ok := strings.Cut(ref, ":/"); ok && len(ref) > shortLimit {
		ref = kind + ":…/" + path[strings.LastIndexByte(path, '/')+1:]
	}
	return shorten(ref)
}

// healthText is what the health check says, or that the VM is not ready yet.
func healthText(i vmItem) string {
	switch {
	case i.Health != "":
		return string(i.Health)
	case i.Status == vm.StatusRunning && !i.Ready:
		return "not ready"
	}
	return "-"
}

// shortLimit is how many characters a column has, at most.
const shortLimit = 40

// shorten makes a value fit a column, on one line. The end of a long one says
// more than its middle: of a path it is the file's name.
func shorten(s string) string { return shortenTo(s, shortLimit) }

func shortenTo(s string, limit int) string {
	s = strings.Join(strings.Fields(printable(s)), " ")
	if r := []rune(s); len(r) > limit {
		return string(r[:limit/2-1]) + "…" + string(r[len(r)-limit/2:])
	}
	return s
}

// age says how long ago t was, in one unit.
func age(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	const day = 24 * time.Hour
	d := max(0, now.Sub(t))
	switch {
	case d >= 2*day:
		return fmt.Sprintf("%d days", d/day)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d minutes", d/time.Minute)
	}
	return fmt.Sprintf("%d seconds", d/time.Second)
}
