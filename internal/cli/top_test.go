package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// The host's part is there whatever the guest says, and be it nothing.
func TestTopShowsAVMWhoseGuestIsSilent(t *testing.T) {
	h := newHost(t)
	if out := h.ok("top", "--no-stream", "--format", "json"); out != "[]\n" {
		t.Errorf("no VM: %q", out)
	}
	v := h.create("box", defaultSpec())
	h.end(h.create("ended", defaultSpec()), 0)
	var vms []topVM
	if err := json.Unmarshal([]byte(h.ok("top", "--no-stream", "--interval", "100ms", "--format", "json")), &vms); err != nil {
		t.Fatal(err)
	}
	if len(vms) != 1 || vms[0].ID != v.Record().ID || vms[0].Guest != nil || vms[0].GuestError != "it is created" ||
		vms[0].Memory == nil || *vms[0].Memory < 1<<20 || vms[0].Processes < 1 {
		t.Errorf("%+v", vms)
	}
	out := h.ok("stats", "--no-stream")
	if lines := strings.Split(out, "\n"); len(lines) != 3 || !strings.HasSuffix(strings.TrimSpace(lines[1]), "-") {
		t.Errorf("table:\n%s", out)
	}
	for _, c := range []struct{ args, want string }{
		{"top --sort size", "--sort"},
		{"top --interval 1ms", "--interval"},
		{"top --guest", "say of which VM"},
		{"top a b", "more than one VM"},
		{"top nope", "no such VM"},
		{"top ended", "not running"},
		{"stats box nope", "no such VM"},
		{"stats box ended", "not running"},
		{"stats --guest box", "guest"},
	} {
		if code, out, errs := h.fcvm(strings.Fields(c.args)...); code != exitFailed || out != "" || !strings.Contains(errs, c.want) {
			t.Errorf("%s: code %d, stdout %q, stderr %q", c.args, code, out, errs)
		}
	}
}

func TestStatsOfSomeVMs(t *testing.T) {
	h := newHost(t)
	h.create("one", defaultSpec())
	two := h.create("two", defaultSpec())
	h.create("three", defaultSpec())
	if out := h.ok("stats", "--no-stream", "--sort", "name", "--format", "{{.Name}}", "two", "one", two.Record().ID[:8]); out != "one\ntwo\n" {
		t.Errorf("of two: %q", out)
	}
	if out := h.ok("stats", "--no-stream", "--sort", "name", "--format", "{{.Name}}"); out != "one\nthree\ntwo\n" {
		t.Errorf("of all: %q", out)
	}
	time.AfterFunc(time.Second, func() { _ = two.Close() })
	if out := h.ok("stats", "--interval", "100ms", "--format", "{{.Name}}", "two"); !strings.HasPrefix(out, "two\n") {
		t.Errorf("until its end: %q", out)
	}
}

func TestTopOrders(t *testing.T) {
	mem := func(n int64) *int64 { return &n }
	guest := func(used, net, disk int64, procs int) *topGuest {
		return &topGuest{Stats: agentapi.Stats{NetSent: net, DiskRead: disk, Processes: procs}, MemoryUsed: used}
	}
	src := &topVMs{vms: []topVM{
		{Name: "b", CPUPercent: 1, Memory: mem(3), Age: 9, Guest: guest(1, 2, 3, 4)},
		{Name: "a", CPUPercent: 2, Memory: nil, Age: 7, Guest: nil},
		{Name: "c", CPUPercent: 3, Memory: mem(2), Age: 8, Guest: guest(4, 3, 2, 1)},
	}}
	for name, want := range map[string]string{
		"cpu": "cab", "memory": "bca", "guest-memory": "cba", "network": "cba", "disk": "bca", "processes": "bca", "age": "bca", "name": "abc",
	} {
		o, ok := findOrder(func(o topOrder) bool { return o.name == name })
		if !ok {
			t.Fatalf("no order %s", name)
		}
		got := ""
		src.sort(o, false)
		for _, v := range src.vms {
			got += v.Name
		}
		if got != want {
			t.Errorf("by %s: %s, want %s", name, got, want)
		}
		src.sort(o, true)
		if src.vms[0].Name != want[2:] {
			t.Errorf("by %s, turned around: %s comes first", name, src.vms[0].Name)
		}
	}
	if len(topOrders) != 8 {
		t.Error("an order is not tested")
	}
}

func TestTopOfManyProcessesSaysHowManyAreLeftOut(t *testing.T) {
	src := &topProcesses{total: 5, procs: []topProcess{{Process: agentapi.Process{PID: 7, Age: 1e300, Command: "x y"}}}}
	var b bytes.Buffer
	if err := src.table(&b); err != nil {
		t.Fatal(err)
	}
	if out := b.String(); !strings.HasSuffix(out, "x y\nand 4 more\n") {
		t.Errorf("%q", out)
	}
}
