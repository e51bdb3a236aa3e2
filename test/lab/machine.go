package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/launch"
	"github.com/fcvm/fcvm/internal/vmm/tsc"
	"github.com/fcvm/fcvm/test/lab/labapi"
)

const (
	consoleName  = "console.log"
	logName      = "qemu.log"
	fdPort       = 3
	consoleLines = 25 // shown when the lab fails
	allLines     = 1 << 20

	// deadAfter is how long a lab may send nothing, not even a beat: it boots in
	// some seconds, and a busy host may leave it without a CPU for a while.
	deadAfter = 30 * labapi.Beat
)

// lab is a machine to be.
type lab struct {
	qemu    qemu
	kernel  string
	modules string
	root    string
	data    bool // there is a data disk
	cpus    int
	memory  int // MiB
	silence time.Duration
}

// args is QEMU's command line. The CPU is the one whose nested virtualization
// QEMU emulates, and "mitigations=off" because nothing speculates here. Pages are
// cleared when they are freed: with the first write to a page the emulator throws
// away what it has translated of code in it, some hundred microseconds for one that a
// VM had its kernel in, and that is not the next VM's to pay, which gets the page.
func (l *lab) args() []string {
	cmdline := "console=ttyS0 quiet panic=-1 mitigations=off cryptomgr.notests init_on_alloc=0 init_on_free=1"
	if khz := tsc.KHz(); khz > 0 {
		cmdline += fmt.Sprintf(" tsc=reliable tsc_early_khz=%d", khz)
	}
	a := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-name", "fcvm-lab",
		"-machine", "q35", "-accel", "tcg", "-cpu", "EPYC-v3,+svm,+npt", "-smp", strconv.Itoa(l.cpus), "-m", fmt.Sprintf("%dM", l.memory),
		"-kernel", l.kernel, "-initrd", initrdName,
		"-append", cmdline,
		"-chardev", "file,id=console,path=" + consoleName, "-serial", "chardev:console",
		"-device", "virtio-serial-pci", "-chardev", fmt.Sprintf("socket,id=lab,fd=%d", fdPort),
		"-device", "virtserialport,chardev=lab,name=" + labapi.PortName,
		"-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng",
	}
	for _, dir := range l.qemu.data {
		a = append(a, "-L", dir)
	}
	disks := []string{
		labapi.DiskRoot:    l.root + ",readonly=on",
		labapi.DiskPayload: payloadName + ",readonly=on",
		labapi.DiskScratch: scratchName + ",cache=unsafe",
	}
	if l.data {
		disks = append(disks, dataName+",readonly=on")
	}
	for _, d := range disks {
		a = append(a, "-drive", "if=virtio,format=raw,file="+d)
	}
	return a
}

// run boots the machine, passes on what the job writes and returns its exit
// code.
func (l *lab) run(ctx context.Context, work string) (int, error) {
	conn, theirs, err := socketPair()
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	log, err := os.Create(filepath.Join(work, logName))
	if err != nil {
		return 0, err
	}
	defer func() { _ = log.Close() }()
	p, err := launch.Direct{}.Launch(ctx, vmm.Command{
		Path: l.qemu.command[0], Args: append(l.qemu.command[1:len(l.qemu.command):len(l.qemu.command)], l.args()...),
		Env: []string{"PATH=/usr/bin:/bin"}, Dir: work, Stdout: log, Stderr: log, Extra: []*os.File{theirs},
	})
	_ = theirs.Close()
	if err != nil {
		return 0, err
	}
	child := vmm.WatchChild("QEMU", p, filepath.Join(work, consoleName), log.Name())
	defer func() {
		_ = p.Signal(syscall.SIGKILL)
		<-child.Done()
	}()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	exit, err := stream(&impatient{conn, deadAfter}, os.Stdout, os.Stderr, l.silence)
	switch {
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case err != nil:
		return 0, errors.Join(fmt.Errorf("%w\nconsole:\n  %s", child.Cause(ctx, err), l.console(work)), l.health(work))
	case exit.Failed:
		return 0, errors.New(exit.Error)
	}
	return exit.Code, l.health(work)
}

// faults are what a kernel says on its console when it has come to harm.
var faults = []string{"BUG: ", "Oops: ", "PANIC: "}

// health returns an error when the lab's own kernel had a fault: QEMU's
// emulation of nested virtualization is not perfect, and whatever the job
// found after one says nothing about fcvm.
func (l *lab) health(work string) error {
	lines := vmm.Tail(filepath.Join(work, consoleName), allLines)
	for i, line := range lines {
		for _, f := range faults {
			if strings.Contains(line, f) {
				return fmt.Errorf("the lab's own kernel had a fault, try again; its console:\n  %s",
					strings.Join(lines[i:min(len(lines), i+consoleLines)], "\n  "))
			}
		}
	}
	return nil
}

// console is what the machine's console ends with.
func (l *lab) console(work string) string {
	return strings.Join(vmm.Tail(filepath.Join(work, consoleName), consoleLines), "\n  ")
}

// impatient is a connection that is given up after a long silence: a kernel that has
// died may hold its machine for ever.
type impatient struct {
	net.Conn
	limit time.Duration
}

func (i *impatient) Read(p []byte) (int, error) {
	if err := i.SetReadDeadline(time.Now().Add(i.limit)); err != nil {
		return 0, err
	}
	n, err := i.Conn.Read(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("the lab is dead: no sign of it for %s: %w", i.limit, err)
	}
	return n, err
}

// errSilent: the lab lives, and its job hangs.
var errSilent = errors.New("the job hangs")

// stream passes on frames until the job's exit, or until the job has written nothing
// for the time of silence. With 0 it may be as quiet as it likes.
func stream(r io.Reader, stdout, stderr io.Writer, silence time.Duration) (agentapi.Exit, error) {
	frames, wrote := agentapi.NewFrameReader(r), time.Now()
	for {
		t, p, err := frames.Next()
		if err != nil {
			return agentapi.Exit{}, fmt.Errorf("read from the lab: %w", err)
		}
		if len(p) > 0 {
			wrote = time.Now()
		} else if silence != 0 && time.Since(wrote) > silence {
			return agentapi.Exit{}, fmt.Errorf("%w: it has written nothing for %s", errSilent, silence)
		}
		switch t {
		case agentapi.FrameStdout:
			_, err = stdout.Write(p)
		case agentapi.FrameStderr:
			_, err = stderr.Write(p)
		case agentapi.FrameExit:
			var e agentapi.Exit
			return e, json.Unmarshal(p, &e)
		}
		if err != nil {
			return agentapi.Exit{}, err
		}
	}
}

func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "lab"), os.NewFile(uintptr(fds[1]), "lab")
	c, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return c, theirs, nil
}
