package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/memserver"
	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/kvm"
)

type memoryServerOptions struct {
	snapshot    string
	detach      bool
	keep        bool
	prefetch    string
	faultAround uint64 // bytes
	hugePages   bool
}

// Values of --prefetch.
const (
	prefetchAuto = "auto"
	prefetchOff  = "off"
)

func newMemoryServerCommand(a *app, run func(context.Context, *app, *memoryServerOptions) error) *cobra.Command {
	o := new(memoryServerOptions)
	cmd := &cobra.Command{
		Use:     "memory-server [flags] SNAPSHOT",
		Short:   "Serve a snapshot's memory to its clones",
		GroupID: groupHost,
		Long: `Serve the memory of one snapshot to any number of Firecracker's VMs: they are
given their pages as they need them (userfaultfd). Serve until the last VM has left,
or Ctrl-C; the VMs that are left then end, for they cannot go on.

The pages that the first VM asks for while it starts are recorded, until it is ready
but for at most 30 seconds, and kept with the snapshot; they are pushed to the next
VMs before these ask. What it asks for in the three seconds after that, as to answer
for the first time, is added unless it has ended.

Pages that are given out are copies: clones with --memory file, which share what
they have not written, take less memory.`,
		Example: `  fcvm memory-server warm
  fcvm memory-server -d --keep warm
  fcvm memory-server ls
  fcvm memory-server stats warm`,
		Args:              one("snapshot"),
		ValidArgsFunction: completeOneSnapshot(a),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.snapshot = args[0]
			return run(ctx, a, o)
		}),
	}
	f := cmd.Flags()
	f.BoolVarP(&o.detach, "detach", "d", false, "serve in the background, and print the socket's path")
	f.BoolVar(&o.keep, "keep", false, "go on when the last VM has left")
	addChoice(cmd, newChoice(&o.prefetch, prefetchAuto, prefetchOff), "prefetch", "record what a VM needs to start and push it to the next ones")
	o.faultAround = memserver.DefaultFaultAround
	f.Var(rate{&o.faultAround}, "fault-around", "give so much memory at once, around the page that is asked for: `SIZE`, a power of two, as 16k")
	complete(cmd, "fault-around", cobra.FixedCompletions([]string{"4k", "16k", "32k", "64k", "128k"}, cobra.ShellCompDirectiveNoFileComp))
	f.BoolVar(&o.hugePages, "hugepages", false, "refuse VMs that have their memory on small pages")
	cmd.AddCommand(newMemoryServerLsCommand(a, runMemoryServerLs), newMemoryServerStatsCommand(a, runMemoryServerStats), newMemoryServerStopCommand(a, runMemoryServerStop))
	return cmd
}

func runMemoryServer(ctx context.Context, a *app, o *memoryServerOptions) error {
	if err := memserver.CheckFaultAround(o.faultAround); err != nil {
		return fmt.Errorf("%w: %w", vm.ErrInvalid, err)
	}
	l, snap, err := a.holdForServer(o.snapshot)
	if err != nil {
		return err
	}
	defer snap.Release()
	if err := snap.Verify(ctx, false); err != nil {
		return err
	}
	if o.hugePages && !snap.Manifest.Needs.HugePages {
		return fmt.Errorf("%w: --hugepages: the VM of snapshot %s did not have its memory on huge pages", vm.ErrInvalid, snap.Manifest.Title())
	}
	if o.detach && !a.sys.isDetached() {
		return a.runDetached(ctx, "the memory server")
	}
	log, err := a.memoryServerLog(l, snap.Manifest.ID, o.detach)
	if err != nil {
		return err
	}
	defer log.close()
	socket, err := l.MemorySocket(snap.Manifest.ID)
	if err != nil {
		return err
	}
	s, err := memserver.Open(memserver.Options{
		Snapshot: snap.Manifest.Title(), Socket: socket,
		Memory: snap.Memory(), WorkingSet: snap.Path(snapshot.WorkingSetName),
		Prefetch: o.prefetch == prefetchAuto, FaultAround: int(o.faultAround),
		Keep: o.keep, HugePages: snap.Manifest.Needs.HugePages, Log: log.line,
	})
	if err != nil {
		return err
	}
	log.begin()
	if o.detach {
		letGo(socket)
	} else {
		log.line("serving the memory of " + snap.Manifest.Title() + " at " + socket)
	}
	err = s.Serve(ctx)
	st := s.Stats()
	if o.detach {
		return errors.Join(err, printServed(log.w, st))
	}
	return errors.Join(err, printServed(a.sys.Stdout, st))
}

// holdForServer finds the snapshot and keeps it from being removed.
func (a *app) holdForServer(ref string) (paths.Layout, *snapshot.Snapshot, error) {
	l, err := a.layout()
	if err != nil {
		return l, nil, err
	}
	st := snapshotsOf(l)
	e, err := st.Find(ref)
	if err != nil {
		return l, nil, err
	}
	snap, err := st.Hold(e.Manifest.ID)
	if err != nil {
		return l, nil, err
	}
	if driver := snap.Manifest.Needs.Driver; driver != a.firecracker(l, kvm.Look).Name() {
		title := snap.Manifest.Title()
		snap.Release()
		return l, nil, fmt.Errorf("%w: snapshot %s is of a VM of %s, which takes its memory from a file only: clone it with --memory file",
			vmm.ErrUnsupported, title, driver)
	}
	return l, snap, nil
}

// serverLog is where a memory server says what happens.
type serverLog struct {
	mu   sync.Mutex
	w    io.Writer
	file *os.File // nil: it is stderr
	left int      // bytes that may still be written to the file
	// early is what is said before begin: until then the file may be the log of a
	// server that runs.
	early []byte
	began bool
}

// maxServerLog bounds the log of a server in the background, bytes: it lies
// where memory is precious.
const maxServerLog = 1 << 20

// memoryServerLog makes the directory of the socket, and opens the log.
func (a *app) memoryServerLog(l paths.Layout, id string, detached bool) (*serverLog, error) {
	if err := os.MkdirAll(l.MemorySockets(), 0o700); err != nil {
		return nil, fmt.Errorf("make the memory server's socket: %w", err)
	}
	if !detached {
		return &serverLog{w: a.sys.Stderr}, nil
	}
	f, err := os.OpenFile(l.MemoryLog(id), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the memory server's log: %w", err)
	}
	return &serverLog{w: f, file: f, left: maxServerLog}, nil
}

func (l *serverLog) line(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	text = printable(text) + "\n"
	if l.file == nil {
		_, _ = io.WriteString(l.w, "fcvm: "+text)
		return
	}
	if l.left -= len(text); l.left < 0 {
		return
	}
	text = time.Now().Format(time.RFC3339) + " " + text
	if !l.began {
		l.early = append(l.early, text...)
		return
	}
	_, _ = io.WriteString(l.w, text)
}

// begin makes the file the log of this server, in place of the last one's.
func (l *serverLog) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.began = true
	if l.file == nil {
		return
	}
	_ = l.file.Truncate(0)
	_, _ = l.w.Write(l.early)
}

func (l *serverLog) close() {
	if l.file != nil {
		_ = l.file.Close()
	}
}

// printServed shows what was done for each VM.
func printServed(w io.Writer, st memserver.Stats) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(t, "VM\tPID\tSTATUS\tFAULTS\tP50\tP99\tAROUND\tPUSHED\tUSED\tZERO\tREMOVED\tREASON")
	for _, v := range append(st.Ended, st.VMs...) {
		status, used := "served", "-"
		if v.Ended != nil {
			status = "ended"
		}
		if v.PushedUsed != nil {
			used = fmt.Sprintf("~%d", *v.PushedUsed)
		}
		_, _ = fmt.Fprintf(t, "%s\t%d\t%s\t%d\t%.0fµs\t%.0fµs\t%d\t%d\t%s\t%d\t%d\t%s\n",
			shorten(v.VM), v.PID, status, v.Faults, v.P50Micros, v.P99Micros, v.Around, v.Pushed, used, v.Zero, v.Removed, printable(v.Reason))
	}
	return t.Flush()
}

// memoryServers asks all servers that run. One that does not answer in time is
// left out: it has ended, or is about to.
func memoryServers(ctx context.Context, l paths.Layout) ([]memserver.Stats, error) {
	names, err := os.ReadDir(l.MemorySockets())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list memory servers: %w", err)
	}
	var all []memserver.Stats
	for _, e := range names {
		id, ok := strings.CutSuffix(e.Name(), paths.ControlSuffix)
		if !ok {
			continue
		}
		socket, err := l.MemorySocket(id)
		if err != nil {
			continue // nobody could listen there
		}
		ask, cancel := context.WithTimeout(ctx, serverPatience)
		st, err := memserver.Query(ask, socket)
		cancel()
		switch {
		case err == nil:
			all = append(all, st)
		case errors.Is(err, memserver.ErrGone):
			_ = memserver.Forget(socket) // it was killed; else the next server removes it
		}
	}
	return all, ctx.Err()
}

// serverPatience is how long a memory server may take to answer.
const serverPatience = 5 * time.Second

// sweepServers removes what memory servers have left that were killed: a socket
// whose snapshot nobody uses, and a log whose snapshot is gone.
func sweepServers(l paths.Layout, snapshots *snapshot.Store) {
	names, err := os.ReadDir(l.MemorySockets())
	if err != nil || len(names) == 0 {
		return // mostly: there never was one
	}
	entries, err := snapshots.List()
	if err != nil {
		return
	}
	inUse := map[string]bool{}
	for _, e := range entries {
		inUse[e.Manifest.ID] = e.InUse
	}
	for _, n := range names {
		id, _, _ := strings.Cut(n.Name(), ".")
		used, there := inUse[id]
		if used {
			continue
		}
		if socket, err := l.MemorySocket(id); err == nil && n.Name() == filepath.Base(socket) {
			_ = memserver.Forget(socket) // one that is served stays
		}
		if !there && n.Name() == filepath.Base(l.MemoryLog(id)) {
			_ = os.Remove(l.MemoryLog(id))
		}
	}
}
