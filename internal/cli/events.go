package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/events"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/vm"
)

type eventsOptions struct {
	since  string
	follow bool
	vm     string
}

func newEventsCommand(a *app, run func(context.Context, *app, *eventsOptions) error) *cobra.Command {
	o := new(eventsOptions)
	cmd := &cobra.Command{
		Use:     "events",
		Short:   "Follow what happens to VMs, as JSON lines",
		GroupID: groupVMs,
		Long: `Print what happens to VMs as it happens, one JSON object per line: created,
started, ready, health, paused, resumed, renamed, stopped, removed.`,
		Example: `  fcvm events
  fcvm events --since 10m --follow=false`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              interruptible(func(ctx context.Context, _ []string) error { return run(ctx, a, o) }),
	}
	cmd.Flags().StringVar(&o.since, "since", "", "begin with events since `TIME`, as 10m or 2006-01-02T15:04:05Z")
	cmd.Flags().BoolVarP(&o.follow, "follow", "f", true, "go on until interrupted")
	cmd.Flags().StringVar(&o.vm, "vm", "", "only those of one `VM`, by id, the unique beginning of one, or name")
	complete(cmd, "since", cobra.FixedCompletions([]string{"1m", "10m", "1h", "24h"}, cobra.ShellCompDirectiveNoFileComp))
	complete(cmd, "vm", oneOfVMs(a))
	return cmd
}

func runEvents(ctx context.Context, a *app, o *eventsOptions) error {
	st, err := a.openStore()
	if err != nil {
		return err
	}
	_ = st.Reconcile() // what it finds is an event, too
	since, err := parseSince(o, time.Now())
	if err != nil {
		return err
	}
	wanted, err := a.eventsOf(st, o.vm)
	if err != nil {
		return err
	}
	log := events.New(st.Layout().Events())
	out := json.NewEncoder(a.sys.Stdout)
	show := func(e events.Event) error {
		if !wanted(e) {
			return nil
		}
		return out.Encode(e)
	}
	if !o.follow {
		return log.Read(since, show)
	}
	go keepReconciling(ctx, st)
	if err := log.Follow(ctx, since, show); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// eventsOf is the filter for the events of one VM; empty: of all. Of one that
// is gone there may be events all the same, and one may yet come.
func (a *app) eventsOf(st *store.Store, ref string) (func(events.Event) bool, error) {
	if ref == "" {
		return func(events.Event) bool { return true }, nil
	}
	e, err := st.Find(ref)
	switch {
	case errors.Is(err, vm.ErrNotFound):
		_, _ = fmt.Fprintf(a.sys.Stderr, "fcvm: there is no VM %s now: only events with just that id or name are shown\n", printable(ref))
		return func(e events.Event) bool { return e.ID == ref || e.Name == ref }, nil
	case err != nil:
		return nil, err
	}
	id := e.Record.ID
	return func(e events.Event) bool { return e.ID == id }, nil
}

// eventsPause is how often somebody who follows events looks for VMs whose
// supervisor was killed: nobody else tells of them.
const eventsPause = time.Second

func keepReconciling(ctx context.Context, st *store.Store) {
	tick := time.NewTicker(eventsPause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_ = st.Reconcile() // what it finds is an event
		}
	}
}

// parseSince reads a time, or how long ago. Without one a follower begins with
// what is new, and a reader with all there is.
func parseSince(o *eventsOptions, now time.Time) (time.Time, error) {
	if o.since == "" {
		if o.follow {
			return now, nil
		}
		return time.Time{}, nil
	}
	return parseTime("--since", o.since, now)
}
