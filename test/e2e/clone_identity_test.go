package e2e

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// twin is a container whose one process has all that must not follow it into a
// clone, and all that must: a connection to the host, one to itself, a listener,
// generators of random numbers. It says of itself what it knows.
const twin = `
import errno, http.server, json, os, random, signal, socket, sys, threading, time

outside = {"state": "none"}

def wait_outside(port):
    s = socket.create_connection(("host.containers.internal", port))
    assert s.recv(2) == b"hi"
    outside["state"] = "open"
    try:
        s.recv(1)
        outside["state"] = "closed"
    except OSError as e:
        outside["state"] = errno.errorcode[e.errno]

def echo(l):
    while True:
        s, _ = l.accept()
        threading.Thread(target=lambda: [s.sendall(b) for b in iter(lambda: s.recv(64), b"")], daemon=True).start()

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        word = os.urandom(8).hex().encode()
        inside.sendall(word)
        with open("/dev/urandom", "rb") as f:
            urandom = f.read(16).hex()
        body = json.dumps({
            "outside": outside["state"], "inside": inside.recv(64) == word, "hostname": socket.gethostname(),
            "resolves": socket.gethostbyname(socket.gethostname()), "machine_id": open("/etc/machine-id").read().strip(),
            "getrandom": os.getrandom(16).hex(), "urandom": urandom, "userspace": str(random.getrandbits(64)),
            "uuid": open("/proc/sys/kernel/random/uuid").read().strip(), "time": time.time(),
        }).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

signal.signal(signal.SIGUSR1, lambda *_: random.seed())
with open("/etc/machine-id", "w") as f:
    f.write("0" * 31 + "1\n")
l = socket.create_server(("127.0.0.1", 9000))
threading.Thread(target=echo, args=(l,), daemon=True).start()
inside = socket.create_connection(("127.0.0.1", 9000))
threading.Thread(target=wait_outside, args=(int(sys.argv[1]),), daemon=True).start()
while outside["state"] != "open":
    time.sleep(0.01)
server = http.server.ThreadingHTTPServer(("", 8080), Handler)
print("up", flush=True)
server.serve_forever()
`

// said is what a twin says.
type said struct {
	Outside   string  `json:"outside"` // how its connection to the host is, or ended
	Inside    bool    `json:"inside"`  // the connection to itself carries what it should
	Hostname  string  `json:"hostname"`
	Resolves  string  `json:"resolves"` // what its own name resolves to
	MachineID string  `json:"machine_id"`
	Getrandom string  `json:"getrandom"`
	Urandom   string  `json:"urandom"`
	Userspace string  `json:"userspace"` // of a generator of Python's own
	UUID      string  `json:"uuid"`
	Time      float64 `json:"time"`

	offset time.Duration // of its clock from this one's, at least
}

// holdConnections is a server of the host's that keeps its connections open.
func holdConnections(t *testing.T) (port int) {
	t.Helper()
	l, err := net.Listen("tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = c.Close() })
			_, _ = c.Write([]byte("hi"))
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// ask has a twin speak. Its clock is looked at by the quickest of a few answers.
func ask(t *testing.T, vm string) (first said) {
	t.Helper()
	url := loopbackURLs(t, vm, "8080")[0]
	first.offset = time.Hour
	for n := range 10 {
		sent := time.Now()
		text := get(t.Context(), url)
		waited := time.Since(sent)
		var s said
		if err := decode([]byte(text), &s); err != nil {
			t.Fatalf("%s answers: %v", vm, err)
		}
		at := time.UnixMicro(int64(s.Time * 1e6))
		off := max(0, at.Sub(sent.Add(waited/2)).Abs()-waited/2)
		if n == 0 {
			s.offset, first = first.offset, s
		}
		first.offset = min(first.offset, off)
	}
	return first
}

// Ten clones, or $FCVM_TEST_CLONES, of one VM, as it runs: each is its own machine.
func TestEveryCloneIsItsOwnMachine(t *testing.T) {
	port := holdConnections(t)
	detach(t, []string{
		"--name", "twin", "--mem", "256m", "-p", "0:8080", "--add-host", "db:192.0.2.7",
		"--on-restore", "kill -USR1 1", "--wait-ready", "log=^up",
	}, "python3", "python3", "-c", twin, fmt.Sprint(port))
	original := ask(t, "twin")
	if original.Outside != "open" || !original.Inside || original.Hostname != "twin" {
		t.Fatalf("the original: %+v", original)
	}
	clones := rounds(t, "FCVM_TEST_CLONES", 10)
	clone(t, "-n", fmt.Sprint(clones), "--name", "twin-{n}", "-e", "ROLE=clone", "twin")
	all := []said{original}
	for n := 1; n <= clones; n++ {
		name := fmt.Sprintf("twin-%d", n)
		s := ask(t, name)
		all = append(all, s)
		t.Logf("%s: %+v", name, s)
		if s.Outside != "ECONNABORTED" && s.Outside != "ECONNRESET" {
			t.Errorf("%s: the original's connection to the host is %s", name, s.Outside)
		}
		if !s.Inside {
			t.Errorf("%s: its connection to itself is lost", name)
		}
		if s.Hostname != name || s.Resolves != "10.0.2.15" {
			t.Errorf("%s: its hostname is %s, at %s", name, s.Hostname, s.Resolves)
		}
		if s.offset > 50*time.Millisecond {
			t.Errorf("%s: its clock is off by %s at least", name, s.offset)
		}
		fcvm(t, "exec", name, "sh", "-c", `echo "$ROLE $HOSTNAME"; n=0; while read -r ip _; do [ "$ip" != 192.0.2.7 ] || n=$((n+1)); done </etc/hosts; echo $n; read name </etc/hostname || echo "$name"`).
			want(t, 0, "clone "+name+"\n1\n"+name+"\n")
		guest := fcvm(t, "exec", "--guest", name, "sh", "-c", "hostname; cat /etc/hostname; cat /etc/machine-id")
		guest.want(t, 0, name+"\n"+name+"\n"+s.MachineID+"\n")
	}
	wantApart(t, all)
	if again := ask(t, "twin"); again.Outside != "open" || !again.Inside || again.MachineID != original.MachineID {
		t.Errorf("the original was disturbed: %+v", again)
	}
}

// wantApart fails if two machines have something in common that they must not.
func wantApart(t *testing.T, all []said) {
	t.Helper()
	seen := map[string]int{}
	for n, s := range all {
		for what, value := range map[string]string{
			"machine id": s.MachineID, "getrandom": s.Getrandom, "/dev/urandom": s.Urandom, "uuid": s.UUID,
			"the generator that --on-restore seeds": s.Userspace,
		} {
			key := what + " " + value
			if m, ok := seen[key]; ok {
				t.Errorf("machines %d and %d have the same %s", m, n, key)
			}
			seen[key] = n
		}
	}
}

// What is connected to the original by its agent ends in a clone: nobody there
// has asked for it.
func TestSessionsDoNotFollowIntoAClone(t *testing.T) {
	detach(t, []string{"--name", "host", "--wait-ready", "log=^up"}, "busybox", "sh", "-c", counts)
	session := start(t, "exec", "host", "sh", "-c", "echo ready; sleep 4711; true")
	session.waitOutput(t, "ready")
	term, _ := onScreen(t, command(t.Context(), "exec", "-it", "host", "sh"))
	term.typing(t, "sleep 4712\n")
	term.see(t, "sleep 4712")
	clone(t, "--name", "guest", "host")
	gone(t, "guest", "sleep 4711")
	gone(t, "guest", "sleep 4712")
	if ps := inVM(t, "host", "ps", "-o", "args"); !strings.Contains(ps, "sleep 4711") || !strings.Contains(ps, "sleep 4712") {
		t.Errorf("the original's sessions have ended, too:\n%s", ps)
	}
	n := countOf(t, "guest")
	eventually(t, "more of the container's work", func() bool { return countOf(t, "guest") > n })
}

// A guest with a systemd, which knows the machine's name and id as well.
func TestCloneOfASystemdGuest(t *testing.T) {
	detach(t, []string{"--name", "unit", "--init", "systemd", "--wait-ready", "log=^up"}, "busybox", "sh", "-c", counts)
	clone(t, "--name", "unit-2", "unit")
	id := func(vm string) string {
		r := fcvm(t, "exec", "--guest", vm, "cat", "/etc/machine-id")
		if r.code != 0 || len(r.stdout) != 33 {
			t.Errorf("the machine id of %s: %+v", vm, r)
		}
		return r.stdout
	}
	if id("unit") == id("unit-2") {
		t.Error("both have one machine id")
	}
	fcvm(t, "exec", "--guest", "unit-2", "sh", "-c", "hostname; systemctl is-active fc-agent; journalctl -q --no-pager -n 1 | wc -l").
		want(t, 0, "unit-2\nactive\n1\n")
}

// What a VM and the commands in it write while it is saved is all there, and once.
func TestOutputWhileSaved(t *testing.T) {
	detach(t, []string{"--name", "talks", "--logs", "file", "--network", "none", "--wait-ready", "log=^1$"},
		"busybox", "sh", "-c", "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo $i; done; sleep 1000")
	stdin, typing := io.Pipe()
	session := startWith(t, stdin, "exec", "-i", "talks", "sh", "-c", "i=0; while read -r x; do i=$((i+1)); echo $i; done; echo end")
	lines := strings.Repeat("x\n", 4000)
	typed := make(chan error, 1)
	go func() {
		for rest := lines; rest != ""; rest = rest[min(200, len(rest)):] {
			if _, err := io.WriteString(typing, rest[:min(200, len(rest))]); err != nil {
				typed <- err
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		typed <- typing.Close()
	}()
	for i := range 3 {
		fcvm(t, "snapshot", "create", "--name", fmt.Sprintf("talks-%d", i), "talks").want(t, 0, fmt.Sprintf("talks-%d\n", i))
		t.Cleanup(func() { fcvm(t, "snapshot", "rm", fmt.Sprintf("talks-%d", i)) })
	}
	if err := <-typed; err != nil {
		t.Error(err)
	}
	if code := session.wait(t); code != 0 || session.out.String() != numbers(4000)+"end\n" {
		t.Errorf("exec ended with code %d, %d bytes of output of %d; stderr:\n%s", code, len(session.out.String()), len(numbers(4000))+4, session.errs.String())
	}
	eventually(t, "end of the container's output", func() bool { return strings.HasSuffix(fcvm(t, "logs", "talks").stdout, "\n2000\n") })
	if got := fcvm(t, "logs", "talks").stdout; got != numbers(2000) {
		t.Errorf("logs are not complete: %d bytes of %d", len(got), len(numbers(2000)))
	}
}
