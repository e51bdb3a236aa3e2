package netns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/vmm"
)

const patience = time.Minute

// Arguments by which this program knows that it is to be something else.
const (
	argReport     = "test-report"     // a VMM that says what it finds
	argSleep      = "test-sleep"      // a VMM that waits for its end
	argSupervisor = "test-supervisor" // starts one and waits to be killed
)

func TestMain(m *testing.M) {
	Main()
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case argReport:
			exit(report(os.Args[2:]))
		case argSleep:
			time.Sleep(patience)
			os.Exit(0)
		case argSupervisor:
			exit(supervise())
		}
	}
	os.Exit(m.Run())
}

func exit(err error) {
	if err != nil {
		_, _ = io.WriteString(os.Stderr, err.Error()+"\n")
		os.Exit(1)
	}
	os.Exit(0)
}

// found is what a VMM finds.
type found struct {
	PID, Parent int
	Args        []string
	Dir, Env    string
	Stdin       string
	Extra       string   // read from descriptor 3
	Left        []string // descriptors that the shim should have closed
	Status      []string // lines of /proc/self/status
	Links       []string
	MTU         int
	Tap         string // the error of opening it
	Known       int    // link addresses that its frames had, and the kernel keeps
}

func report(args []string) error {
	f := found{PID: os.Getpid(), Parent: os.Getppid(), Args: args, Env: os.Getenv("NETNS_TEST")}
	f.Dir, _ = os.Getwd()
	extra, err := io.ReadAll(os.NewFile(3, "extra"))
	if err != nil {
		return err
	}
	stdin, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	f.Extra, f.Stdin = string(extra), string(stdin)
	for fd := range 64 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			target, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
			if strings.HasPrefix(target, "socket:") || target == tunDevice {
				f.Left = append(f.Left, target)
			}
		}
	}
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "Cap") || strings.HasPrefix(line, "NoNewPrivs") {
			f.Status = append(f.Status, strings.Join(strings.Fields(line), " "))
		}
	}
	ifs, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range ifs {
		f.Links = append(f.Links, i.Name)
		if i.Name == "tap0" {
			f.MTU = i.MTU
		}
	}
	if fd, err := openTap("tap0"); err != nil {
		f.Tap = err.Error()
	} else {
		if f.Known, err = flood(fd); err != nil {
			return err
		}
		_ = unix.Close(fd)
	}
	return json.NewEncoder(os.Stdout).Encode(f)
}

// flood sends frames from many link addresses, and returns how many of those the
// namespace's bridge remembers.
func flood(tap int) (known int, err error) {
	source := net.HardwareAddr{0x02, 0xab, 0xcd, 0xef, 0, 0}
	for range 50 {
		for source[5] = range 16 {
			frame := slices.Concat(make([]byte, 10), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, source, []byte{0x88, 0xb5}, make([]byte, 46))
			if _, err := unix.Write(tap, frame); err != nil {
				return 0, os.NewSyscallError("write", err)
			}
		}
		time.Sleep(10 * time.Millisecond) // until the link is up
	}
	list, err := netlink.NeighList(0, unix.AF_BRIDGE)
	for _, n := range list {
		if bytes.HasPrefix(n.HardwareAddr, source[:4]) {
			known++
		}
	}
	return known, err
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// need skips a test where namespaces cannot be made.
func need(t *testing.T) {
	t.Helper()
	if err := Check(); err != nil {
		t.Skip(err)
	}
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if !Privileged() {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
	}
	if err := cmd.Run(); err != nil {
		t.Skipf("network namespaces cannot be made here: %v", err)
	}
}

var testTap = Tap{Name: "tap0", MTU: 4000}

// The VMM finds what it was given, and nothing more.
func TestLaunch(t *testing.T) {
	need(t)
	dir := t.TempDir()
	input := func(text string) *os.File {
		path := filepath.Join(dir, text)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	p, uplink, err := Launch(t.Context(), vmm.Command{
		Path: self(t), Args: []string{argReport, "a b", `"quoted" $x`}, Env: []string{"NETNS_TEST=value"}, Dir: dir,
		Stdin: input("stdin"), Stdout: out, Stderr: os.Stderr, Extra: []*os.File{input("extra")},
	}, testTap, func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = uplink.Close() }()
	if exit := p.Wait(); exit.Code != 0 {
		t.Fatalf("VMM: %+v", exit)
	}
	b, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	var got found
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatalf("%v in %q", err, b)
	}
	if !slices.Contains(got.Status, "NoNewPrivs: 1") {
		t.Errorf("new privileges are possible: %q", got.Status)
	}
	if !Privileged() && !slices.Contains(got.Status, "CapEff: 0000000000000000") {
		t.Errorf("VMM has capabilities: %q", got.Status)
	}
	if !slices.Contains(got.Status, "CapAmb: 0000000000000000") {
		t.Errorf("VMM has ambient capabilities: %q", got.Status)
	}
	slices.Sort(got.Links)
	got.Status = nil
	want := found{
		PID: p.PID(), Parent: os.Getpid(), Args: []string{"a b", `"quoted" $x`}, Dir: dir, Env: "value",
		Stdin: "stdin", Extra: "extra", Links: []string{"br0", "lo", "tap0", "up0"}, MTU: testTap.MTU,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what the VMM finds (-want +got):\n%s", diff)
	}
	// The namespace was the VMM's alone.
	if _, err := netlink.LinkByName(bridgeName); err == nil {
		if _, err := netlink.LinkByName(UplinkName); err == nil {
			t.Error("the taps are in this process's namespace")
		}
	}
}

// The namespace sends nothing by itself: what comes is the guest's.
func TestUplinkIsSilent(t *testing.T) {
	need(t)
	p, uplink, err := Launch(t.Context(), vmm.Command{Path: self(t), Args: []string{argSleep}, Dir: t.TempDir(), Stderr: os.Stderr}, testTap, func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Wait()
	defer func() { _ = p.Signal(syscall.SIGKILL) }()
	defer func() { _ = uplink.Close() }()
	_ = uplink.SetReadDeadline(time.Now().Add(2 * time.Second)) // IPv6 would announce itself within one
	b := make([]byte, 2000)
	if n, err := uplink.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d bytes, %v: %x", n, err, b[:n])
	}
}

func TestLaunchErrors(t *testing.T) {
	need(t)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		ctx  context.Context
		cmd  vmm.Command
		tap  Tap
		want string
	}{
		{"no such program", t.Context(), vmm.Command{Path: "/nonexistent"}, testTap, "execute /nonexistent: no such file"},
		{"not executable", t.Context(), vmm.Command{Path: plain}, testTap, "permission denied"},
		{"no such directory", t.Context(), vmm.Command{Path: self(t), Dir: "/nonexistent"}, testTap, "no such file"},
		{"long tap name", t.Context(), vmm.Command{Path: self(t)}, Tap{Name: "tap-of-sixteen-ch", MTU: 1500}, "tap-of-sixteen-ch"},
		{"impossible MTU", t.Context(), vmm.Command{Path: self(t)}, Tap{Name: "tap0", MTU: 1 << 20}, "MTU"},
		{"cancelled", cancelled, vmm.Command{Path: self(t)}, testTap, "canceled"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := Launch(tt.ctx, tt.cmd, tt.tap, func() {})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
}

// What is tried is what Launch does, and nothing of it is left.
func TestProbe(t *testing.T) {
	need(t)
	if err := Probe(t.Context(), testTap); err != nil {
		t.Error(err)
	}
	if err := Probe(t.Context(), Tap{Name: "tap0", MTU: 1 << 20}); err == nil || !strings.Contains(err.Error(), "MTU") {
		t.Errorf("a tap that cannot be made: %v", err)
	}
	if _, err := netlink.LinkByName(testTap.Name); err == nil {
		t.Error("the tap is in this process's namespace")
	}
}

// supervise starts a VMM, prints its process id and waits.
func supervise() error {
	p, uplink, err := Launch(context.Background(), vmm.Command{Path: "/proc/self/exe", Args: []string{argSleep}, Dir: "/", Stderr: os.Stderr}, testTap, func() {})
	if err != nil {
		return err
	}
	_, _ = io.WriteString(os.Stdout, strconv.Itoa(p.PID())+"\n")
	time.Sleep(patience)
	_ = uplink.Close()
	return nil
}

// When the supervisor is killed, the VMM is gone.
func TestVMMDiesWithItsParent(t *testing.T) {
	need(t)
	cmd := exec.Command(self(t), argSupervisor)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 32)
	n, err := out.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil {
		t.Fatal(err)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(pidfd) }()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	ended, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
	if err != nil || ended != 1 {
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		t.Errorf("the VMM lives on: %v", err)
	}
}

func BenchmarkLaunch(b *testing.B) {
	if err := Check(); err != nil {
		b.Skip(err)
	}
	dir := b.TempDir()
	for b.Loop() {
		p, uplink, err := Launch(b.Context(), vmm.Command{Path: "/bin/true", Dir: dir}, testTap, func() {})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		_ = uplink.Close()
		p.Wait()
		b.StartTimer()
	}
}

func BenchmarkProbe(b *testing.B) {
	for b.Loop() {
		if err := Probe(b.Context(), testTap); err != nil {
			b.Skip(err)
		}
	}
}
