package cli

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

type memoryServerLsOptions struct{ format string }

func newMemoryServerLsCommand(a *app, run func(context.Context, *app, *memoryServerLsOptions) error) *cobra.Command {
	o := new(memoryServerLsOptions)
	cmd := &cobra.Command{
		Use:     "ls [flags]",
		Aliases: []string{"list"},
		Short:   "List memory servers",
		Long: `List the memory servers that run. WORKING SET is how many pages are pushed to a
VM that starts; with --format json all that they know of each VM comes along.`,
		Example: `  fcvm memory-server ls
  fcvm memory-server ls --format '{{.Snapshot}} {{len .VMs}}'`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              interruptible(func(ctx context.Context, _ []string) error { return run(ctx, a, o) }),
	}
	addFormat(cmd, &o.format, "Snapshot", "Socket", "PID", "Started", "Prefetch", "FaultAround", "Keep", "MemorySize", "WorkingSet", "Recording", "VMs", "Ended")
	return cmd
}

func runMemoryServerLs(ctx context.Context, a *app, o *memoryServerLsOptions) error {
	f, err := parseFormat(o.format)
	if err != nil {
		return err
	}
	l, err := a.layout()
	if err != nil {
		return err
	}
	servers, err := memoryServers(ctx, l)
	if err != nil {
		return err
	}
	if !f.plain() {
		return writeItems(a.sys.Stdout, f, servers)
	}
	t := tabwriter.NewWriter(a.sys.Stdout, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(t, "SNAPSHOT\tPID\tAGE\tVMS\tWORKING SET\tSOCKET")
	for _, s := range servers {
		set := fmt.Sprintf("%d pages", s.WorkingSet)
		switch {
		case s.Recording:
			set = "being recorded"
		case !s.Prefetch:
			set = prefetchOff
		case s.WorkingSet == 0:
			set = "none yet"
		}
		_, _ = fmt.Fprintf(t, "%s\t%d\t%s\t%d\t%s\t%s\n", shorten(s.Snapshot), s.PID, age(s.Started, time.Now()), len(s.VMs), set, printable(s.Socket))
	}
	return t.Flush()
}

type memoryServerStatsOptions struct{ snapshot, format string }

func newMemoryServerStatsCommand(a *app, run func(context.Context, *app, *memoryServerStatsOptions) error) *cobra.Command {
	o := new(memoryServerStatsOptions)
	cmd := &cobra.Command{
		Use:   "stats [flags] SNAPSHOT",
		Short: "Show what a memory server has done for each VM",
		Long: `Show what the memory server of a snapshot has done for each VM that it serves,
and for the last ones that have ended.

FAULTS are the pages that the VM has asked for, P50 and P99 how long half and 99 %
of them took at most, from when the server knew of one until the page was there.
AROUND are pages that came along as neighbours, PUSHED those of the working set
that came before the VM asked. USED says how many of these the VM needed: an estimate,
since nothing can see that; one page in 64, or about 16 of many, is held back, and
counts as used if the VM asks for it. ZERO are pages of zeros, which take no memory;
REMOVED were given back.`,
		Example: `  fcvm memory-server stats warm
  fcvm memory-server stats warm --format json`,
		Args:              one("snapshot"),
		ValidArgsFunction: completeOneSnapshot(a),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.snapshot = args[0]
			return run(ctx, a, o)
		}),
	}
	addFormat(cmd, &o.format)
	return cmd
}

func runMemoryServerStats(ctx context.Context, a *app, o *memoryServerStatsOptions) error {
	f, err := parseFormat(o.format)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, serverPatience)
	defer cancel()
	st, _, err := a.queryServer(ctx, o.snapshot)
	if err != nil {
		return err
	}
	switch {
	case f.json:
		return writeJSON(a.sys.Stdout, st)
	case f.tmpl != nil:
		return f.execute(a.sys.Stdout, st)
	}
	return printServed(a.sys.Stdout, st)
}
