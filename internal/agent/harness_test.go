package agent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/agentclient"
	"github.com/fcvm/fcvm/internal/serialmux"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == reaperArg {
		reaperMain()
		return
	}
	if len(os.Args) > 2 && os.Args[2] == "exec" {
		os.Exit(runtimeMain(os.Args[1:]))
	}
	goleak.VerifyTestMain(m)
}

const patience = 30 * time.Second

// guest is an agent that serves without a VM around it.
type guest struct {
	agent  *agent
	client *agentclient.Client
	inside bool // exec enters the container
}

// eachPlace runs a test of commands in the guest and in its container.
func eachPlace(t *testing.T, f func(*testing.T, *guest)) {
	t.Run("guest", func(t *testing.T) { f(t, newGuest(t, pipeCarrier)) })
	t.Run("container", func(t *testing.T) { f(t, newContainerGuest(t, pipeCarrier)) })
}

// newContainerGuest returns a guest whose container runs.
func newContainerGuest(t *testing.T, carrier func(*testing.T) (net.Listener, agentclient.Dial)) *guest {
	t.Helper()
	g := newGuest(t, carrier)
	g.plan(t, agentapi.Container{Args: []string{"sleep", "1000"}})
	r, err := g.client.Start(t.Context())
	if err != nil || r.PID == 0 {
		t.Fatalf("start the container: %+v, %v", r, err)
	}
	g.inside = true
	t.Cleanup(func() {
		_ = unix.Kill(r.PID, unix.SIGKILL)
		eventually(t, "the end of the container", func() bool { return g.agent.state.status().Exit != nil })
	})
	return g
}

// carriers are the ways that the channel is carried here.
var carriers = map[string]func(*testing.T) (net.Listener, agentclient.Dial){
	"pipe":   pipeCarrier,
	"serial": serialCarrier,
}

func newGuest(t *testing.T, carrier func(*testing.T) (net.Listener, agentclient.Dial)) *guest {
	t.Helper()
	a := newAgent(params{}, newSpawner(false))
	a.log = slog.New(slog.DiscardHandler)
	a.poweroff = func() {}
	a.container.engine = fakeEngine(t)
	l, dial := carrier(t)
	srv := &http.Server{Handler: a.handler(), ReadHeaderTimeout: patience}
	served := make(chan struct{})
	go func() { _ = srv.Serve(l); close(served) }()
	g := &guest{agent: a, client: agentclient.New(dial)}
	t.Cleanup(func() {
		g.client.Close()
		_ = srv.Close()
		<-served
	})
	return g
}

// pipeListener accepts what its dial makes: two ends of a net.Pipe.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func pipeCarrier(*testing.T) (net.Listener, agentclient.Dial) {
	l := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
	return l, func(ctx context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		select {
		case l.conns <- theirs:
			return ours, nil
		case <-l.done:
			return nil, net.ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// serialCarrier is QEMU's way, with a socket pair in the place of the port.
func serialCarrier(t *testing.T) (net.Listener, agentclient.Dial) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	h, err := serialmux.NewHost(os.NewFile(uintptr(fds[0]), "host"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	port := os.NewFile(uintptr(fds[1]), "guest")
	opened := false
	return serialmux.Listen(func() (io.ReadWriteCloser, error) {
		if opened {
			return nil, os.ErrNotExist // its one host is gone
		}
		opened = true
		return port, nil
	}), h.Dial
}

// fakeEngine runs a container's command as it is, without Podman. A command
// of "fail" is one that the runtime could not start.
func fakeEngine(t *testing.T) engine {
	t.Helper()
	dir, err := os.MkdirTemp("", "fcvm") // short: there will be sockets in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	pidFile, userFiles := filepath.Join(dir, "pid"), filepath.Join(dir, "files")
	if err := os.Mkdir(userFiles, 0o700); err != nil {
		t.Fatal(err)
	}
	writeRuntimeState(t, filepath.Join(dir, "state", runtimeID))
	return engine{
		id: func() (string, error) { return runtimeID, nil }, userFiles: func(string) string { return userFiles }, runtime: "/proc/self/exe",
		state: filepath.Join(dir, "state"), entries: filepath.Join(dir, "e"),
		command: func(c *agentapi.Container) (*exec.Cmd, error) {
			if c.Args[0] == "fail" {
				return exec.Command("/bin/sh", "-c", "echo some warning >&2; echo \"Error: crun: $1\" >&2; exit $2", "sh", c.Args[1], c.Args[2]), nil
			}
			start := "echo $$ >" + pidFile + ".new; mv " + pidFile + ".new " + pidFile + "; exec \"$@\""
			return exec.Command("/bin/sh", append([]string{"-c", start, "sh"}, c.Args...)...), nil
		},
		firstPID: pidIn(pidFile),
	}
}

// pidIn is an engine's firstPID that reads a file.
func pidIn(path string) func() (int, bool) {
	return func() (int, bool) {
		pid, err := readPID(path)
		return pid, err == nil
	}
}

// plan makes the guest ready to run a command as its container.
func (g *guest) plan(t *testing.T, c agentapi.Container) {
	t.Helper()
	if err := g.client.SendPlan(t.Context(), &agentapi.Plan{Version: agentapi.Version, Container: c}); err != nil {
		t.Fatal(err)
	}
	g.agent.state.ready()
	if err := g.client.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (g *guest) attach(t *testing.T) *agentclient.Stream {
	t.Helper()
	s, err := g.client.Attach(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func (g *guest) exec(t *testing.T, req agentapi.ExecRequest) *agentclient.Stream {
	t.Helper()
	req.Guest = !g.inside
	s, err := g.client.Exec(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func sh(script string) agentapi.ExecRequest {
	return agentapi.ExecRequest{Args: []string{"sh", "-c", script}}
}

// result is all that comes of a stream.
type result struct {
	exit     agentapi.Exit
	out, err string
}

// run follows a stream to its end.
func run(t *testing.T, s *agentclient.Stream, stdin io.Reader) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out, errs bytes.Buffer
	exit, err := s.Run(ctx, agentclient.Stdio{Stdin: stdin, Stdout: &out, Stderr: &errs})
	if err != nil {
		t.Errorf("run: %v (stdout %q, stderr %q)", err, tail(out.String()), tail(errs.String()))
	}
	return result{exit, out.String(), errs.String()}
}

func tail(s string) string { return s[max(0, len(s)-200):] }

// lines collects what a stream writes and lets a test wait for a part of it.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{}
}

func newLines() *lines { return &lines{more: make(chan struct{}, 1)} }

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p)
	select {
	case l.more <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *lines) wait(t *testing.T, want string) {
	t.Helper()
	for limit := time.After(patience); !strings.Contains(l.String(), want); {
		select {
		case <-l.more:
		case <-limit:
			t.Fatalf("no %q in %q", want, tail(l.String()))
		}
	}
}

// eventually waits for something that no event tells of.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for limit := time.Now().Add(patience); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

// gone reports whether no process of that id, as a command has printed it, is left.
func gone(pid string) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/%s", strings.TrimSpace(pid)))
	return err != nil
}
