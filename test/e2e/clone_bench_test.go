package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
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
	"github.com/fcvm/fcvm/internal/store"
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

// pythonSite is a web application that has loaded what it needs.
const pythonSite = `import http.server, json, sqlite3, decimal, email
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"path": self.path, "sum": str(sum(map(decimal.Decimal, range(100))))}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(("", 8000), H).serve_forever()
`

// service is one that is cloned when it is warm.
type service struct {
	name, image string
	port        int
	flags, cmd  []string
	load        func(b *testing.B, vm string)               // before the snapshot is taken
	answers     func(ctx context.Context, addr string) bool // the first answer
}

func services() []service {
	return []service{
		{name: "nginx", image: "nginx", port: 80, flags: []string{"--wait-ready", "http=http://localhost/"}, answers: answersHTTP},
		{
			name: "redis", image: "redis", port: 6379, flags: []string{"--wait-ready", "tcp=6379", "--mem", "768"},
			load: func(b *testing.B, vm string) {
				must(b, "exec", vm, "sh", "-c", `redis-cli debug populate 100000 key 512 >/dev/null && redis-cli set greeting hello`)
			},
			answers: func(ctx context.Context, addr string) bool { return answersRedis(ctx, addr, "greeting", "hello") },
		},
		{name: "python", image: "python3", port: 8000, cmd: []string{"python3", "-c", pythonSite}, flags: []string{"--wait-ready", "tcp=8000"}, answers: answersHTTP},
	}
}

// BenchmarkCloneToAnswer clones a warm service ten times at once (or
// $FCVM_TEST_CLONES times), and measures from the command to the first answer of
// each: with the snapshot's file mapped, and, where the VMM can, from a memory server
// without and with its working set pushed ahead. They take turns; ratios are those of
// the medians.
func BenchmarkCloneToAnswer(b *testing.B) {
	for _, s := range services() {
		b.Run(s.name, func(b *testing.B) { benchService(b, s) })
	}
}

func benchService(b *testing.B, s service) {
	vm, name := s.name+"-vm", s.name+"-warm"
	must(b, runArgs(b, slices.Concat([]string{"-d", "--name", vm, "-p", fmt.Sprint("0:", s.port)}, labapi.OneCPU(), s.flags), s.image, s.cmd...)...)
	if s.load != nil {
		s.load(b, vm)
	}
	if !waitAnswer(b, s, address(b, vm)) {
		b.Fatal("the original does not answer")
	}
	must(b, "snapshot", "create", "--name", name, vm)
	b.Cleanup(func() { must(b, "snapshot", "rm", "-f", name) })
	must(b, "rm", "-f", vm)
	// The first one after a snapshot finds nothing of what the next ones find.
	cloneToAnswer(b, s, name, "file", 1)
	ways := []string{"file"}
	if env.driver == "firecracker" {
		ways = append(ways, "server", "prefetch")
		recordStart(b, s, name)
	}
	clones := rounds(b, "FCVM_TEST_CLONES", 10)
	took := map[string][]time.Duration{}
	for b.Loop() {
		for _, way := range ways {
			took[way] = append(took[way], cloneToAnswer(b, s, name, way, clones)...)
		}
	}
	for _, way := range ways {
		b.ReportMetric(median(took[way]).Seconds()*1e3, way+"-ms")
		b.ReportMetric(slices.Max(took[way]).Seconds()*1e3, way+"-max-ms")
	}
	if len(took["prefetch"]) > 0 {
		b.ReportMetric(median(took["prefetch"]).Seconds()/median(took["server"]).Seconds(), "prefetch/server")
	}
	b.ReportMetric(0, "ns/op") // of all ways together, with what cleans up
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

// recordStart starts the clone whose start is the working set, and waits until
// it is recorded.
func recordStart(b *testing.B, s service, name string) {
	b.Helper()
	defer serveMemory(b, name, true)()
	id := strings.TrimSpace(must(b, "clone", "-d", "-p", fmt.Sprint("0:", s.port), "--memory", "server", "--snapshot", name))
	if !waitAnswer(b, s, address(b, id)) {
		b.Fatal("the first clone does not answer")
	}
	for servedBy(b, name).Recording {
		time.Sleep(100 * time.Millisecond)
	}
	must(b, "rm", "-f", id)
}

// cloneToAnswer starts clones at once, in one of the benchmark's ways, and returns
// how long each took to answer.
func cloneToAnswer(b *testing.B, s service, name, way string, clones int) []time.Duration {
	b.Helper()
	memory := "file"
	if way != "file" {
		memory = "server"
		defer serveMemory(b, name, way == "prefetch")()
	}
	began := time.Now()
	ids := strings.Fields(must(b, "clone", "-d", "-n", strconv.Itoa(clones), "-p", fmt.Sprint("0:", s.port), "--memory", memory, "--snapshot", name))
	took := make([]time.Duration, len(ids))
	var all sync.WaitGroup
	for i, id := range ids {
		addr := address(b, id)
		all.Go(func() {
			if !waitAnswer(b, s, addr) {
				b.Errorf("clone %s does not answer", id)
			}
			took[i] = time.Since(began)
		})
	}
	all.Wait()
	must(b, append([]string{"rm", "-f"}, ids...)...)
	return took
}

// address is where a VM's first port is published. It comes from the record: a
// command for it would be measured too.
func address(b *testing.B, vm string) string {
	b.Helper()
	st, err := store.Open(paths.Layout{Data: env.data})
	if err != nil {
		b.Fatal(err)
	}
	e, err := st.Find(vm)
	if err = errors.Join(err, e.Err); err != nil {
		b.Fatal(err)
	}
	if len(e.Record.Resolved.Ports) == 0 {
		b.Fatalf("%s has no port", vm)
	}
	addr, _, _ := strings.Cut(e.Record.Resolved.Ports[0], "->")
	return addr
}

func waitAnswer(b *testing.B, s service, addr string) bool {
	ctx, cancel := context.WithTimeout(b.Context(), runTimeout)
	defer cancel()
	for ctx.Err() == nil {
		if s.answers(ctx, addr) {
			return true
		}
		time.Sleep(5 * time.Millisecond)
	}
	return false
}

func answersHTTP(ctx context.Context, addr string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
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
