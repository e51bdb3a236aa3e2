package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/agentclient"
	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/proc"
	"github.com/fcvm/fcvm/internal/rootfs"
	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/usage"
	"github.com/fcvm/fcvm/internal/vmm"
	"github.com/fcvm/fcvm/internal/vmm/firecracker"
	"github.com/fcvm/fcvm/internal/vmm/kvm"
	"github.com/fcvm/fcvm/internal/vmm/qemu"
	"github.com/fcvm/fcvm/test/lab/labapi"
)

// benchSnapshot takes a snapshot of a container that has nothing to do, and
// returns it, held. The VM is gone when it returns.
func benchSnapshot(b *testing.B, name, image string, flags []string, cmd ...string) *snapshot.Snapshot {
	b.Helper()
	vm := name + "-vm"
	flags = slices.Concat([]string{"-d", "--name", vm, "--save-snapshot", name}, labapi.OneCPU(), flags)
	must(b, runArgs(b, flags, image, cmd...)...)
	must(b, "rm", "-f", vm)
	b.Cleanup(func() { must(b, "snapshot", "rm", "-f", name) })
	s := snapshot.New(paths.Layout{Data: env.data}.Snapshots())
	e, err := s.Find(name)
	if err != nil {
		b.Fatal(err)
	}
	snap, err := s.Hold(e.Manifest.ID)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(snap.Release)
	return snap
}

// must runs a command that has to work, and returns what it wrote to stdout.
func must(b testing.TB, args ...string) string {
	b.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.Context()), runTimeout)
	defer cancel()
	out, err := command(ctx, args...).Output()
	if err != nil {
		b.Fatalf("fcvm %q: %v", args, withStderr(err))
	}
	return string(out)
}

// BenchmarkClone measures the time from the clone command to the agent's first
// answer, beside the same files loaded by the VMM alone, to the same answer: no
// record, network, limits. The two take turns; the ratio is that of the medians.
// What comes after the answer, until the clone is a machine of its own and the
// command has returned, the VMM alone does not do: ready-ratio is with it. When the
// answer came is told by the record: so long before the clone counted as running as
// its last phase took.
func BenchmarkClone(b *testing.B) {
	snap := benchSnapshot(b, "bench", "busybox", []string{"--network", "none"}, "sleep", "inf")
	var answered, ready, bare []time.Duration
	phases := map[string][]time.Duration{}
	for b.Loop() {
		bare = append(bare, bareClone(b, snap))
		began := time.Now()
		id := strings.TrimSpace(must(b, "clone", "-d", "--snapshot", "bench"))
		took := time.Since(began)
		ready = append(ready, took)
		each := phasesOf(b, id)
		if each["identity"] == 0 {
			b.Fatalf("the phases are %v: none is from the agent's answer to the clone's own identity", each)
		}
		answer := runningSince(b, id).Add(-each["identity"]).Sub(began)
		if answer <= 0 || answer > took-each["identity"] {
			b.Fatalf("the agent answered %s after the command began, which took %s with %s after the answer", answer, took, each["identity"])
		}
		answered = append(answered, answer)
		commands := took // the two processes, outside of the phases
		for name, took := range each {
			phases[name] = append(phases[name], took)
			commands -= took
		}
		phases["commands"] = append(phases["commands"], commands)
		must(b, "rm", "-f", id)
	}
	f, r, a := median(answered), median(ready), median(bare)
	b.ReportMetric(f.Seconds()*1e3, "fcvm-ms")
	b.ReportMetric(r.Seconds()*1e3, "ready-ms")
	b.ReportMetric(a.Seconds()*1e3, "bare-ms")
	b.ReportMetric(f.Seconds()/a.Seconds(), "ratio")
	b.ReportMetric(r.Seconds()/a.Seconds(), "ready-ratio")
	for name, took := range phases {
		b.ReportMetric(median(took).Seconds()*1e3, name+"-ms")
	}
	b.ReportMetric(0, "ns/op") // of both together: it says nothing
}

// phasesOf is how long each phase of a VM's start took.
func phasesOf(b *testing.B, vm string) map[string]time.Duration {
	b.Helper()
	phases := map[string]time.Duration{}
	out := must(b, "inspect", "--format", `{{range .Phases}}{{.Name}} {{printf "%d" .Duration}}{{"\n"}}{{end}}`, vm)
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) != 2 {
			continue
		}
		ns, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		phases[f[0]] = time.Duration(ns)
	}
	return phases
}

// runningSince is when a VM began to count as running.
func runningSince(b *testing.B, vm string) time.Time {
	b.Helper()
	out := must(b, "inspect", "--format", `{{range .History}}{{if eq .Status "running"}}{{.Time.UnixNano}}{{end}}{{end}}`, vm)
	ns, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return time.Unix(0, ns)
}

// bareClone spawns a VMM, loads the snapshot, resumes the guest and waits for
// its agent.
func bareClone(b *testing.B, snap *snapshot.Snapshot) time.Duration {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), runTimeout)
	defer cancel()
	cfg := bareConfig(b, snap)
	defer func() { _, _ = cfg.Console.Close(), cfg.VMMLog.Close() }()
	r := restorer()
	began := time.Now()
	m, err := r.Restore(ctx, cfg, vmm.RestoreFrom{State: snap.State(), Memory: snap.Memory()})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	if err := m.Resume(ctx); err != nil {
		b.Fatal(err)
	}
	c := agentclient.New(m.Dial)
	defer c.Close()
	if _, err := c.WaitAgent(ctx); err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}

// restorer is the driver under test.
func restorer() vmm.Restorer {
	tried := sync.OnceValue(kvm.Probe)
	tried() // the VMM alone does not do that
	if env.driver == "qemu" {
		return qemu.New(os.Getenv("FCVM_QEMU"), tried, nil)
	}
	return firecracker.New(os.Getenv("FCVM_FIRECRACKER"), tried, nil)
}

// bareConfig lays the snapshot's files out as a VM's directory has them.
func bareConfig(b *testing.B, snap *snapshot.Snapshot) vmm.Config {
	b.Helper()
	m := &snap.Manifest
	dir := b.TempDir()
	layout := paths.Layout{Data: env.data}
	link := func(name, target string) {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			b.Fatal(err)
		}
	}
	link(paths.KernelName, filepath.Join(layout.Kernels(), m.Needs.KernelID, "vmlinux"))
	link(paths.RootName, filepath.Join(layout.Roots(), m.Needs.RootID, "rootfs.ext4"))
	link(paths.ImageName, filepath.Join(layout.Images(), "disks", strings.TrimPrefix(m.Needs.ImageDigest, "sha256:"), "image.ext4"))
	link(paths.InitrdName, snap.Path(paths.InitrdName))
	scratch := filepath.Join(dir, paths.ScratchName)
	if err := rootfs.CopySparse(b.Context(), scratch, snap.Path(paths.ScratchName)); err != nil {
		b.Fatal(err)
	}
	log := func(name string) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			b.Fatal(err)
		}
		return f
	}
	cfg := vmm.Config{
		Dir: dir, Kernel: paths.KernelName, Initrd: paths.InitrdName, CPUs: m.Needs.CPUs, MemoryMiB: m.Needs.MemoryMiB,
		Console: log("console.log"), VMMLog: log("vmm.log"),
	}
	for _, d := range m.Disks {
		cfg.Disks = append(cfg.Disks, vmm.Disk{ID: d.ID, Path: d.Name, ReadOnly: d.ReadOnly})
	}
	return cfg
}

// BenchmarkClonesAtOnce starts several clones with one command, and divides the
// time by their number. The numbers take turns; the ratios are those of the medians to
// that of one clone.
func BenchmarkClonesAtOnce(b *testing.B) {
	benchSnapshot(b, "bench", "busybox", []string{"--mem", "256"}, "sleep", "inf")
	// The first one after a snapshot finds nothing of what the next ones find.
	must(b, "rm", "-f", strings.TrimSpace(must(b, "clone", "-d", "--snapshot", "bench")))
	n := rounds(b, "FCVM_TEST_CLONES", 10)
	numbers := []int{1, n / 2, n, 2 * n}
	each := map[int][]time.Duration{}
	for b.Loop() {
		for _, n := range numbers {
			began := time.Now()
			ids := strings.Fields(must(b, "clone", "-d", "-n", strconv.Itoa(n), "--snapshot", "bench"))
			each[n] = append(each[n], time.Since(began)/time.Duration(n))
			must(b, append([]string{"rm", "-f"}, ids...)...)
		}
	}
	one := median(each[1]).Seconds()
	for _, n := range numbers {
		took := median(each[n]).Seconds()
		b.ReportMetric(took*1e3, fmt.Sprintf("ms/%d", n))
		b.ReportMetric(took/one, fmt.Sprintf("%d/1", n))
	}
	b.ReportMetric(0, "ns/op") // with what cleans up
}

// serveMemory has a memory server run until stop is called: with prefetch one that
// pushes the working set ahead, or records it when there is none.
func serveMemory(b *testing.B, name string, prefetch bool) (stop func()) {
	b.Helper()
	auto := "off"
	if prefetch {
		auto = "auto"
	}
	p := start(b, "memory-server", "--keep", "--prefetch", auto, name)
	p.eventually(b, "memory server", func() bool {
		return command(b.Context(), "memory-server", "stats", name).Run() == nil
	})
	return func() {
		_ = p.Process.Signal(syscall.SIGTERM)
		p.wait(b)
	}
}

// BenchmarkCloneMemory measures what idle clones of a guest of 512 MiB take
// together: the proportional set sizes of all of their processes, supervisors
// too, with 10 (or $FCVM_TEST_CLONES) and with twice as many of them. The slope is
// what one more adds.
func BenchmarkCloneMemory(b *testing.B) {
	benchSnapshot(b, "bench", "nginx", []string{"--wait-ready", "http=http://localhost/"})
	ways := []string{"file"}
	if env.driver == "firecracker" {
		ways = append(ways, "server")
	}
	for _, way := range ways {
		b.Run(way, func(b *testing.B) {
			if way == "server" {
				defer serveMemory(b, "bench", false)()
			}
			for b.Loop() {
				n := rounds(b, "FCVM_TEST_CLONES", 10)
				once, twice := memoryOf(b, n, way), memoryOf(b, 2*n, way)
				slope := (twice - once) / float64(n)
				b.ReportMetric(once, fmt.Sprintf("MiB/%d", n))
				b.ReportMetric(twice, fmt.Sprintf("MiB/%d", 2*n))
				b.ReportMetric(slope, "MiB/clone")
				b.ReportMetric(once-float64(n)*slope, "MiB+")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// memoryOf starts n clones, lets them come to rest and returns what all of their
// processes take, MiB.
func memoryOf(b *testing.B, n int, memory string) float64 {
	b.Helper()
	const rest = 10 * time.Second
	ids := strings.Fields(must(b, "clone", "-d", "-n", strconv.Itoa(n), "--memory", memory, "--snapshot", "bench"))
	defer must(b, append([]string{"rm", "-f"}, ids...)...)
	time.Sleep(rest)
	host, err := usage.Look()
	if err != nil {
		b.Fatal(err)
	}
	var total int64
	for _, id := range ids {
		pid, err := strconv.Atoi(strings.TrimSpace(must(b, "inspect", "--format", "{{.Supervisor.PID}}", id)))
		if err != nil {
			b.Fatal(err)
		}
		start, err := proc.StartTime(pid)
		if err != nil {
			b.Fatal(err)
		}
		u, err := host.Of(pid, start)
		if err != nil || u.Memory == nil {
			b.Fatalf("memory of %s: %+v, %v", id, u, err)
		}
		total += *u.Memory
	}
	return float64(total) / (1 << 20)
}

// BenchmarkWarmRun measures a run of an image that has run before, beside one
// that boots. The two take turns; the ratio is that of the medians.
func BenchmarkWarmRun(b *testing.B) {
	run := func(flags ...string) time.Duration {
		ctx, cancel := context.WithTimeout(b.Context(), runTimeout)
		defer cancel()
		args := slices.Concat([]string{"run", "--vmm", env.driver}, flags, []string{imageRef(b), "echo", firstOutput})
		return timeToOutput(b, command(ctx, args...))
	}
	run() // leaves the guest for the next ones
	var warm, cold []time.Duration
	for b.Loop() {
		cold = append(cold, run("--no-cache"))
		warm = append(warm, run())
	}
	w, c := median(warm), median(cold)
	b.ReportMetric(w.Seconds(), "warm-s")
	b.ReportMetric(c.Seconds(), "cold-s")
	b.ReportMetric(w.Seconds()/c.Seconds(), "warm/cold")
	b.ReportMetric(0, "ns/op") // of both together: it says nothing
}
