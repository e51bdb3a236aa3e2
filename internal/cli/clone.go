package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/control"
	"github.com/fcvm/fcvm/internal/logs"
	"github.com/fcvm/fcvm/internal/memserver"
	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/supervisor"
	"github.com/fcvm/fcvm/internal/vm"
)

// maxClones bounds what one command starts.
const maxClones = 1000

// cloneOptions is `fcvm clone` as it was typed.
type cloneOptions struct {
	vm       string // empty: of a snapshot
	snapshot string

	name      string
	hostname  string
	count     int
	env       []string
	network   networkOptions
	onRestore []string
	exec      string
	waitReady string
	source    supervisor.Memory

	trackDirty bool
	cpus       int
	memory     int // MiB

	detach      bool
	interactive bool
	tty         bool
	remove      bool
	logs        vm.Logs
	logSize     int // MiB
	quiet       bool
	verbose     bool
	timings     bool

	given func(flag string) bool // on the command line
}

func newCloneCommand(a *app, run func(context.Context, *app, *cloneOptions) error) *cobra.Command {
	o := new(cloneOptions)
	cmd := &cobra.Command{
		Use:     "clone [flags] VM | clone [flags] --snapshot SNAPSHOT",
		Short:   "Start VMs from one that runs, or from a snapshot",
		GroupID: groupRun,
		Long: `Start VMs that go on where another one is: of VM, as it runs now, or as it was
when --snapshot was taken. A clone is a VM of its own, with its own name, disks,
network and ports, its own hostname, machine id and random numbers; memory that
it does not write to it shares with its like. TCP connections of the original are
reset in it, listeners go on.

A VM that is paused or has ended is cloned from the last snapshot that was taken
of it since it was started. Ports that the original has published a clone
publishes on free ports of the host (fcvm port), or those of -p instead.

With -n several are started, in the background (-d) or each for the command of
--exec. {n} in --name and --hostname is the number of each; to a name without it
-1, -2, … are added.`,
		Example: `  fcvm clone -d --name web2 -p 8081:80 web
  fcvm clone -d -n 10 --name 'web-{n}' -p 0:80 --snapshot warm
  fcvm clone --exec 'pytest -q' --snapshot warm`,
		Args: func(cmd *cobra.Command, args []string) error {
			if o.snapshot != "" && len(args) > 0 {
				return &usageError{command: cmd.CommandPath(), err: errors.New("it takes a VM or --snapshot, not both")}
			}
			if o.snapshot == "" {
				return one("VM")(cmd, args)
			}
			return nil
		},
		ValidArgsFunction: completeOneVM(a, liveVM),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.vm = args[0]
			}
			o.given = cmd.Flags().Changed
			return run(cmd.Context(), a, o)
		},
	}
	o.register(a, cmd)
	return cmd
}

// register declares the flags in the order in which the help shows them.
func (o *cloneOptions) register(a *app, cmd *cobra.Command) {
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&o.snapshot, "snapshot", "", "start from this `SNAPSHOT`")
	complete(cmd, "snapshot", completeSnapshots(a))
	f.StringVar(&o.name, "name", "", "`NAME` of the clone; a random one if not given")
	complete(cmd, "name", cobra.NoFileCompletions)
	f.StringVar(&o.hostname, "hostname", "", "`NAME` that the clone has for its host (default: its name)")
	complete(cmd, "hostname", cobra.NoFileCompletions)
	f.IntVarP(&o.count, "count", "n", 1, "start `NUMBER` clones")
	f.StringArrayVarP(&o.env, "env", "e", nil, "set a variable for commands that are run in the clone: `KEY=VALUE`, or KEY to take it from here")
	f.StringVar(&o.exec, "exec", "", "run `COMMAND` in the clone's shell when it is ready, exit with its code, and end the clone")
	f.StringArrayVar(&o.onRestore, "on-restore", nil, "run `COMMAND` in the clone's shell before it is ready, beside those of the original's run")
	f.StringVar(&o.waitReady, "wait-ready", "", "count as ready when the `GATE` is open: agent, http=URL, tcp=PORT, log=REGEX or exec=CMD; [,timeout=5m][,interval=500ms]")
	addChoice(cmd, newChoice(&o.source, supervisor.MemoryFile, supervisor.MemoryServer, supervisor.MemoryAuto), "memory", "where memory comes from: the snapshot's file, shared until it is written to; its memory server; or that if it runs")
	f.BoolVar(&o.trackDirty, "track-dirty", false, "have Firecracker remember what the clone writes: snapshots of it save only that, and each page that is written first costs a fault")
	f.BoolVarP(&o.detach, "detach", "d", false, "leave the clone in the background once it is ready, and print its id")
	f.BoolVarP(&o.interactive, "interactive", "i", false, "pass stdin to the container, or to the command of --exec")
	f.BoolVarP(&o.tty, "tty", "t", false, "take over the container's terminal, if it has one")
	o.network.register(cmd)
	f.IntVar(&o.cpus, "cpu", 0, "`NUMBER` of virtual CPUs: that of the original, or an error")
	f.Var(memory{&o.memory}, "mem", "memory: that of the original, or an error")
	f.BoolVar(&o.remove, "rm", true, "forget the clone when it has ended; -d, --rm=false, and --logs file or both, keep its record, log and disk")
	addChoice(cmd, newChoice(&o.logs, vm.LogsStream, vm.LogsFile, vm.LogsBoth), "logs", "where output goes: here, to the clone's log file, or both")
	o.logSize = logs.DefaultLimit >> 20
	f.Var(memory{&o.logSize}, "log-size", "how much of the output the log file keeps, the newest: a number of MiB, or 64m, 1g")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "show no progress")
	f.BoolVar(&o.verbose, "verbose", false, "say what is done and why, on stderr")
	f.BoolVar(&o.timings, "timings", false, "say at the end how long each phase took, on stderr")
	cmd.MarkFlagsMutuallyExclusive("quiet", "verbose")
}

func runClone(ctx context.Context, a *app, o *cloneOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	if number := a.sys.getenv(cloneNumberEnv); number != "" { // one of several, or in the background
		n, err := strconv.Atoi(number)
		if err != nil {
			return fmt.Errorf("start a clone: %s: %w", cloneNumberEnv, err)
		}
		a.swept = true // by the command that waits for this one
		return a.runOneClone(ctx, o, a.sys.getenv(cloneOfEnv), n)
	}
	if o.detach && o.count == 1 && o.snapshot != "" {
		// At once: all that there is to see it sees itself. What others have left is
		// looked after meanwhile.
		swept := make(chan struct{})
		go func() {
			defer close(swept)
			_, _ = a.openStore()
		}()
		defer func() { <-swept }()
		return a.startClones(ctx, o, "")
	}
	st, err := a.openStore()
	if err != nil {
		return err
	}
	// A clone's supervisor holds the snapshot itself; this is for the time until
	// all of them do.
	var snap *snapshot.Snapshot
	err = untilInterrupted(ctx, func(ctx context.Context) (err error) {
		snap, err = o.origin(ctx, st, a.sys.LookupEnv)
		return err
	})
	if err != nil {
		return err
	}
	defer snap.Release()
	of, err := ofSnapshot(&snap.Manifest)
	if err == nil {
		_, _, err = o.spec(of, a.sys.LookupEnv, o.count) // the longest hostname
	}
	if err != nil {
		return err
	}
	a.noteServer(st.Layout(), o, snap)
	if o.count > 1 || o.detach {
		return a.startClones(ctx, o, snap.Manifest.ID)
	}
	a.swept = true
	return a.runOneClone(ctx, o, snap.Manifest.ID, 1)
}

// noteServer says that a memory server runs from which the clones could have
// their memory, to somebody who has not chosen.
func (a *app) noteServer(l paths.Layout, o *cloneOptions, snap *snapshot.Snapshot) {
	if o.quiet || o.snapshot == "" || o.given("memory") || o.trackDirty || snap.Manifest.Needs.HugePages {
		return
	}
	if isServed(l, snap.Manifest.ID) {
		_, _ = fmt.Fprintf(a.sys.Stderr, "fcvm: the memory is that of the snapshot's file, though a memory server runs for %s: it is used with --memory server\n", snap.Manifest.Title())
	}
}

// isServed reports whether a memory server runs for a snapshot.
func isServed(l paths.Layout, id string) bool {
	socket, err := l.MemorySocket(id)
	if err == nil {
		_ = memserver.Forget(socket) // that of one that was killed
		_, err = os.Stat(socket)
	}
	return err == nil
}

// check refuses what cannot be meant, and fills in what -d changes.
func (o *cloneOptions) check() error {
	switch {
	case o.count < 1 || o.count > maxClones:
		return fmt.Errorf("%w: --count %d: it is 1 to %d", vm.ErrInvalid, o.count, maxClones)
	case o.count > 1 && !o.detach && o.exec == "":
		return fmt.Errorf("%w: --count %d: several run in the background (-d), or each for a command (--exec)", vm.ErrInvalid, o.count)
	case o.detach && (o.interactive || o.tty):
		return fmt.Errorf("%w: -d and -i or -t rule each other out; use fcvm exec -it", vm.ErrInvalid)
	case o.detach && o.exec != "":
		return fmt.Errorf("%w: -d and --exec rule each other out: the clone ends with the command; use fcvm exec -d in a clone", vm.ErrInvalid)
	case o.count > 1 && o.interactive:
		return fmt.Errorf("%w: --count %d: -i passes stdin to one clone, and several cannot share it; start them with -d, and use fcvm exec -i in each", vm.ErrInvalid, o.count)
	case o.count > 1 && o.network.ip != "": // only the bridge has it, which all of them are on
		return fmt.Errorf("%w: --ip %s: it can be had by one of %d clones; without it each gets an address of its own", vm.ErrInvalid, o.network.ip, o.count)
	case o.exec != "" && o.tty:
		return fmt.Errorf("%w: --exec has no terminal; use fcvm exec -it", vm.ErrInvalid)
	case o.trackDirty && o.source != supervisor.MemoryFile:
		return fmt.Errorf("%w: --track-dirty: what is saved is a difference to the snapshot's file; use --memory file", vm.ErrInvalid)
	case o.logSize < 1:
		return fmt.Errorf("%w: --log-size %d: a log keeps at least 1 MiB", vm.ErrInvalid, o.logSize)
	}
	if o.detach {
		if o.given("logs") && o.logs != vm.LogsFile {
			return fmt.Errorf("%w: --logs %s: the output of a VM in the background goes to its log file", vm.ErrInvalid, o.logs)
		}
		o.logs = vm.LogsFile
	}
	if !o.given("rm") {
		o.remove = o.logs == vm.LogsStream
	}
	return o.checkNames()
}

func (o *cloneOptions) checkNames() error {
	if o.count > 1 && o.hostname != "" && !strings.Contains(o.hostname, cloneNumber) {
		return fmt.Errorf("%w: --hostname %s: %d clones would all have it; put {n}, the number of each, into it", vm.ErrInvalid, o.hostname, o.count)
	}
	for _, n := range []int{1, o.count} {
		if name := o.nameOf(n); name != "" {
			if err := vm.CheckName(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// nameOf is the name of the n-th clone, from 1; empty: a random one.
func (o *cloneOptions) nameOf(n int) string {
	if o.name == "" || o.count == 1 || strings.Contains(o.name, cloneNumber) {
		return numbered(o.name, n)
	}
	return fmt.Sprintf("%s-%d", o.name, n)
}

// cloneNumber stands for a clone's number in what is typed once for all.
const cloneNumber = "{n}"

func numbered(s string, n int) string { return strings.ReplaceAll(s, cloneNumber, strconv.Itoa(n)) }

// origin returns what the clones start from: the snapshot that was named, or
// one of the VM, which is taken now if it runs.
func (o *cloneOptions) origin(ctx context.Context, st *store.Store, lookup func(string) (string, bool)) (*snapshot.Snapshot, error) {
	snapshots := snapshotsOf(st.Layout())
	if o.snapshot != "" {
		e, err := snapshots.Find(o.snapshot)
		if err = errors.Join(err, e.Err); err != nil {
			return nil, err
		}
		return snapshots.Hold(e.Manifest.ID)
	}
	e, err := st.Find(o.vm)
	if err = errors.Join(err, e.Err); err != nil {
		return nil, err
	}
	if !e.Alive || e.Record.Status == vm.StatusPaused {
		if s, ok := snapshots.Newest(e.Record.ID, lastRun(&e.Record)); ok {
			return snapshots.Hold(s.Manifest.ID)
		}
	}
	if !e.Alive {
		return nil, fmt.Errorf("clone %s: %w, and no snapshot was taken of it; before its end, use: fcvm snapshot create --stop %s", nameOf(e), notRunning(e), nameOf(e))
	}
	if err := o.checkRunning(&e.Record, lookup); err != nil { // before it is paused
		return nil, err
	}
	var snap *snapshot.Snapshot
	err = ask(st, e, "clone", func(c *control.Client) error {
		done, err := c.Snapshot(ctx, control.SnapshotRequest{})
		if err == nil {
			snap, err = snapshots.Hold(done.ID)
		}
		return err
	})
	return snap, err
}

// checkRunning refuses what clones of a VM that runs cannot be. What is not up yet is
// left to its supervisor.
func (o *cloneOptions) checkRunning(r *vm.Record, lookup func(string) (string, bool)) error {
	const remedy = "use:\n  fcvm snapshot create --name warm %[2]s\n  fcvm memory-server -d warm\n  fcvm clone --snapshot warm --memory server"
	switch {
	case r.Spec.HugePages: // of the snapshot that is taken there is no memory server yet
		return fmt.Errorf("%w: clone %s: its memory is of huge pages, which clones have from a memory server only; "+remedy, vm.ErrInvalid, r.Name)
	case o.source == supervisor.MemoryServer:
		return fmt.Errorf("%w: clone %s: of the snapshot that is taken of it no memory server runs; "+remedy, vm.ErrInvalid, r.Name)
	case r.Status != vm.StatusRunning && r.Status != vm.StatusPaused:
		return nil
	}
	_, _, err := o.spec(ofRunning(r), lookup, o.count)
	return err
}

// holdOrigin holds the snapshot of this id; without one, that which the command
// names.
func (a *app) holdOrigin(ctx context.Context, st *store.Store, o *cloneOptions, id string) (*snapshot.Snapshot, error) {
	if id != "" {
		return snapshotsOf(st.Layout()).Hold(id)
	}
	snap, err := o.origin(ctx, st, a.sys.LookupEnv)
	if err == nil {
		a.noteServer(st.Layout(), o, snap)
	}
	return snap, err
}

// runOneClone is the supervisor of the n-th clone, from the snapshot of this id, or,
// if that is empty, from what the command names.
func (a *app) runOneClone(ctx context.Context, o *cloneOptions, id string, n int) error {
	c, err := openConsole(a.sys, consoleOptions{interactive: o.interactive, tty: o.tty, quiet: o.quiet, verbose: o.verbose})
	if err != nil {
		return err
	}
	defer c.close()
	a.bridgeSubnet = o.network.subnet
	d, err := a.deps(false)
	if err != nil {
		return err
	}
	snap, err := a.holdOrigin(ctx, d.Store, o, id)
	if err != nil {
		return err
	}
	defer snap.Release()
	of, err := ofSnapshot(&snap.Manifest)
	if err != nil {
		return err
	}
	spec, env, err := o.spec(of, a.sys.LookupEnv, n)
	if err != nil {
		return err
	}
	clone := &supervisor.Clone{Snapshot: snap, Memory: o.source, Env: env, TrackDirty: o.trackDirty}
	if o.exec != "" {
		clone.Exec = []string{"/bin/sh", "-c", o.exec}
	}
	signals, stopSignals := containerSignals()
	defer stopSignals()
	opts := supervisor.Options{
		Name: o.nameOf(n), Spec: spec, Clone: clone,
		Stdio: c.stdio, Signals: signals, Progress: c.reporter, Verbose: c.verbose, Started: c.started,
	}
	if !o.interactive && o.exec == "" {
		opts.Stdio.In = supervisor.OpenInput{} // the original's did not end either
	}
	return a.runSupervisor(ctx, d, opts, c, o.detach, o.timings)
}
