package cli

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/memserver"
	"github.com/fcvm/fcvm/internal/snapshot"
)

type memoryServerStopOptions struct {
	snapshot string
	force    bool
}

func newMemoryServerStopCommand(a *app, run func(context.Context, *app, *memoryServerStopOptions) error) *cobra.Command {
	o := new(memoryServerStopOptions)
	cmd := &cobra.Command{
		Use:   "stop [flags] SNAPSHOT",
		Short: "End a memory server",
		Long: `End the memory server of a snapshot, as one that was started with --keep. While it
has VMs that is an error: they cannot go on without it, and end with --force.`,
		Example:           `  fcvm memory-server stop warm`,
		Args:              one("snapshot"),
		ValidArgsFunction: completeOneSnapshot(a),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.snapshot = args[0]
			return run(ctx, a, o)
		}),
	}
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "end it under its VMs; and no server is no error")
	return cmd
}

// stopPause is how long is waited between looks at a server that ends.
const stopPause = 10 * time.Millisecond

func runMemoryServerStop(ctx context.Context, a *app, o *memoryServerStopOptions) error {
	ctx, cancel := context.WithTimeout(ctx, serverPatience)
	defer cancel()
	st, title, err := a.queryServer(ctx, o.snapshot)
	switch {
	case errors.Is(err, memserver.ErrGone) && o.force:
		return nil
	case err != nil:
		return err
	case len(st.VMs) > 0 && !o.force:
		return fmt.Errorf("%d VMs have their memory from the server of snapshot %s: stop them first, or end them with it: --force", len(st.VMs), title)
	}
	if err := syscall.Kill(st.PID, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("end the memory server of snapshot %s: %w", title, err)
	}
	for {
		if _, err := memserver.Query(ctx, st.Socket); errors.Is(err, memserver.ErrGone) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the memory server of snapshot %s, process %d, does not end", title, st.PID)
		case <-time.After(stopPause):
		}
	}
}

// queryServer asks the memory server of a snapshot, and returns what to call that.
// The error wraps memserver.ErrGone when there is no server.
func (a *app) queryServer(ctx context.Context, ref string) (st memserver.Stats, title string, err error) {
	l, err := a.layout()
	if err != nil {
		return st, "", err
	}
	e, err := snapshot.New(l.Snapshots()).Find(ref)
	if err != nil {
		return st, "", err
	}
	title = e.Manifest.Title()
	socket, err := l.MemorySocket(e.Manifest.ID)
	if err != nil {
		return st, title, err
	}
	st, err = memserver.Query(ctx, socket)
	if errors.Is(err, memserver.ErrGone) {
		err = &notServedError{title}
	}
	return st, title, err
}

// notServedError says that a snapshot has no memory server.
type notServedError struct{ title string }

func (e *notServedError) Error() string {
	return fmt.Sprintf("nobody serves the memory of snapshot %s: start with: fcvm memory-server %s", e.title, e.title)
}

func (e *notServedError) Unwrap() error { return memserver.ErrGone }
