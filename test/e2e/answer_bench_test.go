package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/test/lab/labapi"
)

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
