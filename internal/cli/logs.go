package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/logs"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/vm"
)

// logsPoll is how often a follower looks for more.
const logsPoll = 100 * time.Millisecond

// allLines is --tail without a limit.
const allLines = math.MaxInt

type logsOptions struct {
	vm         string
	follow     bool
	tail       string
	since      string
	until      string
	timestamps bool
	console    bool
}

func newLogsCommand(a *app, run func(context.Context, *app, *logsOptions) error) *cobra.Command {
	o := new(logsOptions)
	cmd := &cobra.Command{
		Use:     "logs [flags] VM",
		Short:   "Print what a container has written",
		GroupID: groupVMs,
		Long: `Print the output of a VM's container: its stdout to stdout, its stderr to
stderr. There is a log for a VM that was run with -d, or with --logs file or
both, for as long as the VM's record is there; of a long one the newest part
(fcvm run --log-size). With -f it goes on until the VM has ended, through
restarts of the container.

--console prints the serial console of the guest around the container, which
every VM has.`,
		Example: `  fcvm run -d --name job alpine sh -c 'date; sleep 5; date'
  fcvm logs -f job
  fcvm logs --tail 20 --timestamps --since 10m job
  fcvm logs --console job`,
		Args:              one("VM"),
		ValidArgsFunction: completeOneVM(a, func(e store.Entry) bool { return o.console || hasLog(e) }),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.vm = args[0]
			return run(ctx, a, o)
		}),
	}
	f := cmd.Flags()
	f.BoolVarP(&o.follow, "follow", "f", false, "go on with what comes, until the VM has ended")
	f.StringVarP(&o.tail, "tail", "n", "all", "begin with the last `NUMBER` of lines")
	f.StringVar(&o.since, "since", "", "leave out what was written before `TIME`, as 10m or 2006-01-02T15:04:05")
	f.StringVar(&o.until, "until", "", "leave out what was written after `TIME`")
	f.BoolVarP(&o.timestamps, "timestamps", "t", false, "say when each line was written")
	f.BoolVar(&o.console, "console", false, "print the guest's serial console instead")
	complete(cmd, "tail", cobra.FixedCompletions([]string{"all", "10", "100"}, cobra.ShellCompDirectiveNoFileComp))
	for _, flag := range []string{"since", "until"} {
		complete(cmd, flag, cobra.FixedCompletions([]string{"1m", "10m", "1h", "24h"}, cobra.ShellCompDirectiveNoFileComp))
	}
	for _, flag := range []string{"since", "until", "timestamps"} {
		cmd.MarkFlagsMutuallyExclusive("console", flag) // it has no times
	}
	return cmd
}

func hasLog(e store.Entry) bool { return e.Record.Spec.Logs != vm.LogsStream }

// completeOneVM is completeVMs for commands that take one.
func completeOneVM(a *app, want func(store.Entry) bool) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return vmNames(a, nil, typed, want), cobra.ShellCompDirectiveNoFileComp
	}
}

// logRange is what of a log is asked for.
type logRange struct {
	tail         int // lines; allLines: no limit
	since, until time.Time
}

func (o *logsOptions) parse(now time.Time) (r logRange, err error) {
	r.tail = allLines
	if o.tail != "all" {
		if r.tail, err = strconv.Atoi(o.tail); err != nil {
			return r, fmt.Errorf("%w: --tail %q: it is a number of lines, or all", vm.ErrInvalid, o.tail)
		}
		if r.tail < 0 { // as in Docker
			r.tail = allLines
		}
	}
	if r.since, err = parseTime("--since", o.since, now); err != nil {
		return r, err
	}
	r.until, err = parseTime("--until", o.until, now)
	return r, err
}

func runLogs(ctx context.Context, a *app, o *logsOptions) error {
	want, err := o.parse(time.Now())
	if err != nil {
		return err
	}
	st, err := a.openStore()
	if err != nil {
		return err
	}
	e, err := st.Find(o.vm)
	if err != nil {
		return err
	}
	id, dir := e.Record.ID, st.Layout().VM(e.Record.ID)
	alive := func() bool { return st.Alive(id) }
	if o.console {
		return a.printConsole(ctx, dir.Console(), want.tail, o.follow, alive)
	}
	// The log of a VM whose record is broken may be all that there is of it.
	if e.Err == nil && e.Record.Spec.Logs == vm.LogsStream {
		return fmt.Errorf("%w: VM %s keeps no log; run it with --logs both, or see its console with: fcvm logs --console %s",
			vm.ErrInvalid, e.Record.Name, e.Record.Name)
	}
	r := logs.NewReader(dir.ContainerLog())
	defer func() { _ = r.Close() }()
	p := &logPrinter{app: a, timestamps: o.timestamps}
	if err := p.print(ctx, r, want, o.follow, alive); err != nil {
		return fmt.Errorf("read the log of VM %s: %w", nameOf(e), err)
	}
	if n := r.Broken(); n > 0 {
		return fmt.Errorf("read the log of VM %s: %d of its lines are broken and were left out", nameOf(e), n)
	}
	return e.Err
}

// wait sleeps until a follower is to look again; false: it is to end.
func waitForMore(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(logsPoll):
		return true
	}
}

// timeLayouts are those of Docker's --since. Without a zone a time is local;
// fractions of a second are read without being in a layout.
var timeLayouts = []string{
	time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02T15:04Z07:00", "2006-01-02T15:04", "2006-01-02 15:04",
	"2006-01-02T15Z07:00", "2006-01-02T15", "2006-01-02Z07:00", time.DateOnly,
}

// parseTime reads a time, or how long ago, with or without a sign; "" is the
// zero time. flag is for messages.
func parseTime(flag, s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d.Abs()), nil
	}
	for _, layout := range timeLayouts {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	if f, err := strconv.ParseFloat(s, 64); err == nil && f >= 0 && f < math.MaxInt32*1000 {
		sec, frac := math.Modf(f)
		return time.Unix(int64(sec), int64(frac*1e9)), nil
	}
	return time.Time{}, fmt.Errorf("%w: %s %q: it is how long ago, as 10m, or a time, as 2006-01-02T15:04:05", vm.ErrInvalid, flag, s)
}

// interrupted is nil for the end of what has no other end.
func interrupted(ctx context.Context) error {
	if err := context.Cause(ctx); !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}
