package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/logs"
	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/setup"
	"github.com/fcvm/fcvm/internal/supervisor"
	"github.com/fcvm/fcvm/internal/vm"
	"github.com/fcvm/fcvm/internal/volume"
)

// What a VM has when nothing else is said.
const (
	defaultCPUs      = 2
	defaultMemoryMiB = 512
)

// runOptions is `fcvm run` as it was typed.
type runOptions struct {
	image   string
	command []string

	name      string
	labels    []string
	pull      image.Pull
	driver    string
	cpus      int
	memory    int // MiB
	balloon   int // MiB
	hugePages bool
	noCache   bool
	save      string // name of a snapshot
	onRestore []string
	ioRate    uint64 // bytes a second
	scratch   int    // MiB
	diskRate  uint64 // bytes a second
	diskOps   uint64 // requests a second
	init      vm.Init
	logs      vm.Logs
	logSize   int // MiB
	remove    bool
	network   networkOptions

	platform    string
	access      image.Access
	bootTimeout time.Duration

	env           []string
	envFiles      []string
	workDir       string
	user          string
	entrypoint    string
	hasEntrypoint bool // --entrypoint "" is not the same as none
	hostname      string
	privileged    bool
	readOnly      bool
	capAdd        []string
	capDrop       []string
	tmpfs         []string
	mounts        volume.Flags
	interactive   bool
	tty           bool

	detach    bool
	restart   string
	waitReady string
	health    healthOptions

	setup   bool
	quiet   bool
	verbose bool
	timings bool
}

const runExample = `  fcvm run alpine echo hello
  fcvm run -it --name box debian bash
  fcvm run -e POSTGRES_PASSWORD=secret -p 5432:5432 --mem 1g postgres
  fcvm run --logs both --rm=false oci-archive:app.tar
  echo '1 + 1' | fcvm run -i python:3-slim python3 -`

func newRunCommand(a *app, run func(context.Context, *app, *runOptions) error) *cobra.Command {
	o := new(runOptions)
	cmd := &cobra.Command{
		Use:     "run [flags] IMAGE [COMMAND [ARG...]]",
		Short:   "Run a container in a VM of its own",
		GroupID: groupRun,
		Long: `Boot a VM, run the image's container in it, and exit with the container's exit
code. The VM ends with the container, and with this process.

IMAGE is what docker run takes: alpine, ghcr.io/org/app:tag, name@sha256:…; or
a file: oci-archive:FILE, docker-archive:FILE, oci:DIRECTORY. Flags end at the
image; what follows is the container's command.

Ctrl-C (SIGINT) and SIGTERM go to the container; the second one within ten
seconds kills the VM. With -i and -t every key goes to the container.`,
		Example: runExample,
		Args:    oneOrMore("image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.image, o.command = args[0], args[1:]
			o.hasEntrypoint = cmd.Flags().Changed("entrypoint")
			if err := o.checkDetached(cmd.Flags().Changed("logs")); err != nil {
				return err
			}
			if !cmd.Flags().Changed("rm") {
				// A log is of no use to anybody once it is removed with its VM.
				o.remove = o.logs == vm.LogsStream && o.restart == vm.RestartNo
			}
			// Signals are the supervisor's: they go to the container.
			return run(cmd.Context(), a, o)
		},
	}
	o.register(cmd)
	return cmd
}

// register declares the flags in the order in which the help shows them.
func (o *runOptions) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SortFlags = false
	f.SetInterspersed(false) // flags behind the image are the container's

	f.StringVar(&o.name, "name", "", "`NAME` of the VM; a random one if not given")
	f.StringArrayVarP(&o.env, "env", "e", nil, "set a variable: `KEY=VALUE`, or KEY to take it from here")
	f.StringArrayVar(&o.envFiles, "env-file", nil, "set the variables in `FILE`, one KEY=VALUE per line")
	f.StringVarP(&o.workDir, "workdir", "w", "", "working `DIR` in the container")
	f.StringVarP(&o.user, "user", "u", "", "run as `USER[:GROUP]`, by name or number")
	f.StringVar(&o.entrypoint, "entrypoint", "", "replace the image's entrypoint by `COMMAND`; \"\" for none")
	f.StringVar(&o.hostname, "hostname", "", "`NAME` that the container has for its host")
	f.StringArrayVarP(&o.labels, "label", "l", nil, "label the VM and the container: `KEY=VALUE`")
	f.BoolVarP(&o.detach, "detach", "d", false, "leave the VM in the background once it is ready, and print its id")
	f.BoolVarP(&o.interactive, "interactive", "i", false, "pass stdin to the container")
	f.BoolVarP(&o.tty, "tty", "t", false, "give the container a terminal")

	f.BoolVar(&o.privileged, "privileged", false, "give the container all privileges in its VM")
	f.BoolVar(&o.readOnly, "read-only", false, "make the container's root read-only")
	f.StringSliceVar(&o.capAdd, "cap-add", nil, "add a Linux `CAPABILITY`")
	f.StringSliceVar(&o.capDrop, "cap-drop", nil, "drop a Linux `CAPABILITY`")
	f.StringArrayVar(&o.tmpfs, "tmpfs", nil, "mount a tmpfs: `PATH[:OPTIONS]`")

	f.StringArrayVarP(&o.mounts.Volumes, "volume", "v", nil, "share a directory or file, or attach a disk: `HOST:GUEST[:ro]`; NAME:GUEST for a named volume")
	f.StringArrayVar(&o.mounts.Maps, "map", nil, "the same as --volume")
	f.StringArrayVar(&o.mounts.Mounts, "mount", nil, "the same in long: `type=bind|volume|tmpfs|disk,source=…,target=…[,readonly]`")
	addChoice(cmd, newChoice(&o.mounts.Mode, volume.ModeLive, volume.ModeBlock), "map-mode", "what a directory becomes: live is shared, block is a disk made of it, the VM's own")

	o.memory = defaultMemoryMiB
	f.IntVar(&o.cpus, "cpu", defaultCPUs, "`NUMBER` of virtual CPUs")
	f.Var(memory{&o.memory}, "mem", "memory of the VM: a number of MiB, or 512m, 2g")
	f.BoolVar(&o.hugePages, "hugepages", false, "back the memory by the host's huge pages, which it must have in reserve (vm.nr_hugepages)")
	f.Var(memory{&o.balloon}, "balloon", "take `SIZE` of it back from the guest once it is up; see fcvm update")
	f.Var(rate{&o.ioRate}, "io-max", "read and write at most so much of the host's disk a second: `SIZE`, as 50m; 0 for no limit")
	o.scratch = vm.DefaultScratchMiB
	f.Var(memory{&o.scratch}, "scratch-size", "how much the container and the VM around it can write, as 512m, 100g; it costs what is written")
	f.Var(rate{&o.diskRate}, "disk-bps", "let the guest read and write at most so many bytes of each of its disks a second: `SIZE`, as 50m; 0 for no limit")
	f.Uint64Var(&o.diskOps, "disk-iops", 0, "let the guest make at most this `NUMBER` of requests to each of its disks a second; 0 for no limit")
	for _, flag := range []string{"scratch-size", "disk-bps", "disk-iops"} {
		complete(cmd, flag, cobra.NoFileCompletions)
	}
	o.network.register(cmd)
	addChoice(cmd, newChoice(&o.pull, image.PullMissing, image.PullAlways, image.PullNever), "pull", "when to ask the registry for the image")
	f.StringVar(&o.platform, "platform", "", "take the image for `OS/ARCH`")
	addAccess(cmd, &o.access)
	addChoice(cmd, newChoice(&o.driver, "auto", "firecracker", "qemu"), "vmm", "what runs the VM")
	addChoice(cmd, newChoice(&o.init, vm.InitAgent, vm.InitSystemd), "init", "process 1 of the guest: agent is fast, systemd is a full system")
	f.BoolVar(&o.noCache, "no-cache", false, "boot the guest, even if one was kept that came up before, and keep none")
	f.DurationVar(&o.bootTimeout, "boot-timeout", 0, "give the guest up after this `TIME`, as 90s or 5m (default depends on the VMM)")

	f.BoolVar(&o.remove, "rm", true, "forget the VM when it has ended; --rm=false, -d, --restart, and --logs file or both, keep its record, log and disk")
	addChoice(cmd, newChoice(&o.logs, vm.LogsStream, vm.LogsFile, vm.LogsBoth), "logs", "where output goes: here, to the VM's log file, or both")
	o.logSize = logs.DefaultLimit >> 20
	f.Var(memory{&o.logSize}, "log-size", "how much of the output the log file keeps, the newest: a number of MiB, or 64m, 1g")
	f.StringVar(&o.restart, "restart", vm.RestartNo, "start the container again when it ends: `POLICY`: no, on-failure[:N] or always")
	f.StringVar(&o.waitReady, "wait-ready", "", "count as ready when the `GATE` is open: agent, http=URL, tcp=PORT, log=REGEX or exec=CMD; [,timeout=5m][,interval=500ms]")
	f.StringVar(&o.save, "save-snapshot", "", "take a snapshot called `NAME` when the VM is ready")
	complete(cmd, "save-snapshot", cobra.NoFileCompletions)
	f.StringArrayVar(&o.onRestore, "on-restore", nil, "run `COMMAND` in the shell of every clone of this VM before it is ready")
	complete(cmd, "on-restore", cobra.NoFileCompletions)
	complete(cmd, "restart", beginnings(vm.RestartNo, vm.RestartOnFailure, vm.RestartOnFailure+":", vm.RestartAlways))
	complete(cmd, "wait-ready", beginnings("agent", "http=http://localhost:", "tcp=", "log=", "exec="))
	o.health.register(f)
	f.BoolVar(&o.setup, "setup", false, "first install what fcvm setup does, if something is missing")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "show no progress")
	f.BoolVar(&o.verbose, "verbose", false, "say what is done and why, on stderr")
	f.BoolVar(&o.timings, "timings", false, "say at the end how long each phase took, on stderr")
	cmd.MarkFlagsMutuallyExclusive("quiet", "verbose")
}

func runRun(ctx context.Context, a *app, o *runOptions) error {
	if o.detach && !a.sys.isDetached() {
		return a.runInBackground(ctx, o)
	}
	if o.detach && len(o.envFiles) > 0 {
		unix.CloseOnExec(detachedFileFD)
		o.envFiles = []string{fmt.Sprintf("/proc/self/fd/%d", detachedFileFD)}
	}
	spec, err := o.spec(a.sys.LookupEnv)
	if err != nil {
		return err
	}
	c, err := openConsole(a.sys, consoleOptions{interactive: o.interactive && !o.detach, tty: o.tty && !o.detach, quiet: o.quiet, verbose: o.verbose})
	if err != nil {
		return err
	}
	defer c.close()
	a.bridgeSubnet = spec.Network.Subnet
	d, err := a.deps(true)
	if err != nil {
		return err
	}
	if o.setup {
		if err := untilInterrupted(ctx, func(ctx context.Context) error { return a.setUp(ctx, d.Setup, o.quiet) }); err != nil {
			return err
		}
	}

	// The image that this run fetches is counted by the next one.
	if err := a.shrinkImages(ctx, 0); err != nil {
		return err
	}
	signals, stopSignals := containerSignals()
	defer stopSignals()
	opts := supervisor.Options{
		Name: o.name, Spec: spec, Pull: o.pull, Platform: o.platform, Access: o.access, SaveSnapshot: o.save, NoCache: o.noCache,
		Stdio: c.stdio, Signals: signals, Progress: c.reporter, Verbose: c.verbose, Started: c.started,
	}
	if o.detach && o.interactive {
		opts.Stdio.In = supervisor.OpenInput{}
	}
	return a.runSupervisor(ctx, d, opts, c, o.detach, o.timings)
}

// runInBackground refuses here what cannot be meant, and has the rest done by
// another process.
func (a *app) runInBackground(ctx context.Context, o *runOptions) error {
	env, err := o.oneEnvFile(a.sys.LookupEnv)
	if err != nil {
		return err
	}
	var files []*os.File
	if env != nil {
		defer func() { _ = env.Close() }()
		files = append(files, env)
	}
	if _, err := o.spec(a.sys.LookupEnv); err != nil {
		return err
	}
	return a.runDetached(ctx, "the VM", files...)
}

// runSupervisor runs a VM to its end, and says at its end what there is to say.
func (a *app) runSupervisor(ctx context.Context, d supervisor.Deps, opts supervisor.Options, c *console, detach, timings bool) error {
	if detach {
		opts.Ready = func(id string) {
			if timings {
				if e, err := d.Store.Find(id); err == nil {
					printTimings(a.sys.Stderr, e.Record.Phases)
				}
			}
			letGo(id)
		}
	}
	res, err := a.supervise(ctx, d, opts)
	c.close()
	if n := res.Record.LogLost; n > 0 {
		_, _ = fmt.Fprintf(a.sys.Stderr, "fcvm: %d bytes of the output are not in the log: there was no room for them in %s\n", n, d.Store.Layout().Data)
	}
	if res.Trouble != nil {
		printError(a.sys.Stderr, fmt.Errorf("after the end of VM %s: %w", res.Record.Name, res.Trouble))
	}
	if timings && !detach {
		printTimings(a.sys.Stderr, res.Record.Phases)
	}
	if err == nil && res.ExitCode != 0 {
		return exitStatus(res.ExitCode)
	}
	return err
}

// setUp installs what fcvm setup does, and says nothing when this host can run
// VMs as it is.
func (a *app) setUp(ctx context.Context, s *setup.Setup, quiet bool) error {
	what, err := a.lacks(ctx)
	if err != nil {
		return err
	}
	_, err = s.Artifacts(ctx)
	if complete := err == nil && (!what.Firecracker || what.Fallback); complete || (err != nil && !errors.Is(err, setup.ErrNotSetUp)) {
		return err
	}
	return a.withProgress(quiet, func(rep progress.Reporter) error { return s.All(ctx, what, rep) })
}
