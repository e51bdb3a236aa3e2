// Command lab is a KVM host in a box: it boots a machine, emulated in
// software down to AMD's virtualization, in which /dev/kvm is real, and runs
// one program in it, mostly a test binary. So Firecracker can be tested on
// hosts without hardware virtualization. Its exit code is the program's; 125
// says that the lab itself failed.
//
//	go test -c -o /tmp/fc.test ./internal/vmm/firecracker
//	go build -o /tmp/lab ./test/lab
//	/tmp/lab -data DIR -- /tmp/fc.test -test.v
//
// (go run would do as well, but ends with 1 for every other code than 0.)
// It needs a new QEMU (see minQEMU), which it takes from the distribution's
// packages when the host's own is older, and what it takes to build a Debian root (mmdebstrap);
// both are kept in a cache directory. Nothing needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// failedCode is the exit code of a lab that failed.
const failedCode = 125

// options is the command line.
type options struct {
	data        string // fcvm's data directory; empty: none
	firecracker string // path
	qemu        string // path; empty: found or fetched
	cache       string // directory
	user        bool   // run the job as an ordinary user
	bench       bool   // lengthen the scheduler's times
	cpus        int
	memory      int           // MiB
	timeout     time.Duration // of the job, with the lab's boot
	silence     time.Duration // without output, which ends the job; 0: as long as it likes
	verbose     bool
	programs    string // of this module, separated by commas
	copies      list   // files and directories for the working directory
	env         list   // NAME=VALUE
	job         []string
}

type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	o, err := parse(os.Args[1:])
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "lab:", err)
		}
		os.Exit(2)
	}
	if o.firecracker == "" {
		fmt.Fprintln(os.Stderr, "lab: skipped: no firecracker binary (set FCVM_FIRECRACKER, or put it on the PATH)")
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	code, err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		code = failedCode
	}
	os.Exit(code)
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("lab", flag.ContinueOnError)
	f.StringVar(&o.data, "data", os.Getenv("FCVM_TEST_DATA"), "fcvm's data `directory`, as fcvm setup has filled it")
	f.StringVar(&o.firecracker, "firecracker", os.Getenv("FCVM_FIRECRACKER"), "Firecracker's `path`; default: on the PATH")
	f.StringVar(&o.qemu, "qemu", os.Getenv("FCVM_LAB_QEMU"), "`path` of a new enough QEMU; default: on the PATH, else fetched")
	f.StringVar(&o.cache, "cache", os.Getenv("FCVM_LAB_CACHE"), "`directory` for what is built once; default: the user's cache")
	f.BoolVar(&o.user, "user", false, "run the program as an ordinary user")
	f.BoolVar(&o.bench, "bench", false, "lengthen the scheduler's times as an emulated CPU needs them, to measure several VMs at once")
	f.IntVar(&o.cpus, "cpus", 1, "the lab's `number` of CPUs, or $FCVM_LAB_CPUS: with 2 it takes half the time, and loses more guests")
	f.IntVar(&o.memory, "mem", 3000, "the lab's memory, `MiB`")
	f.DurationVar(&o.timeout, "timeout", 30*time.Minute, "give up after this `time`")
	f.DurationVar(&o.silence, "silence", 0, "give up when the program has written nothing for this `time`; 0: never")
	f.BoolVar(&o.verbose, "v", false, "say how far the lab is, on stderr")
	f.StringVar(&o.programs, "programs", "fcvm,fc-agent,vmmtest-guest,netpeer", "build these `programs` into the lab")
	f.Var(&o.copies, "copy", "copy a file or directory into the working `directory`; may be given again")
	f.Var(&o.env, "env", "set an environment variable, `NAME=VALUE`; may be given again")
	f.Usage = func() {
		_, _ = fmt.Fprintln(f.Output(), "usage: lab [flags] -- PROGRAM [ARGUMENT...]")
		f.PrintDefaults()
	}
	if n := os.Getenv("FCVM_LAB_CPUS"); n != "" {
		if err := f.Set("cpus", n); err != nil {
			return o, fmt.Errorf("FCVM_LAB_CPUS: %w", err)
		}
	}
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if o.job = f.Args(); len(o.job) == 0 {
		return o, errors.New("no program given: lab [flags] -- PROGRAM [ARGUMENT...]")
	}
	if o.firecracker == "" {
		o.firecracker, _ = exec.LookPath("firecracker")
	}
	if o.cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return o, fmt.Errorf("find a cache directory: %w; give -cache", err)
		}
		o.cache = filepath.Join(dir, "fcvm-lab")
	}
	return o, nil
}

// run returns the job's exit code.
func run(ctx context.Context, o options) (int, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("not done after %s; give -timeout for longer", o.timeout))
	defer cancel()
	say := func(format string, args ...any) {
		if o.verbose {
			fmt.Fprintf(os.Stderr, "lab: "+format+"\n", args...)
		}
	}
	c, unlock, err := openCache(ctx, o.cache)
	if err != nil {
		return 0, err
	}
	l := lab{cpus: o.cpus, memory: o.memory, silence: o.silence}
	began := time.Now()
	if err = l.prepare(ctx, c, o.qemu); err != nil {
		unlock()
		return 0, err
	}
	unlock()
	say("QEMU, kernel and root are ready after %s", time.Since(began).Round(time.Millisecond))

	work, err := os.MkdirTemp("", "fcvm-lab-")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(work) }()
	if err := l.makeDisks(ctx, work, o); err != nil {
		return 0, err
	}
	say("disks are ready after %s", time.Since(began).Round(time.Millisecond))
	return l.run(ctx, work)
}

// prepare finds or makes what all labs share.
func (l *lab) prepare(ctx context.Context, c *cache, qemu string) (err error) {
	if l.qemu, err = findQEMU(ctx, c, qemu); err != nil {
		return err
	}
	if l.kernel, l.modules, err = labKernel(ctx, c); err != nil {
		return err
	}
	l.root, err = labRoot(ctx, c)
	return err
}
