package memserver

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/paths"
)

// promptly is how long the end of a VM that is in trouble may take: a second, on
// a machine that is not as busy as those that run tests.
const promptly = 5 * time.Second

// linked starts a VM with a supervisor that watches it.
func (s *service) linked(name string) (*fakeVMM, *Link) {
	s.t.Helper()
	l := s.link(name)
	v := startVMM(s.t, s.settings())
	if err := l.Attach(v.pid()); err != nil {
		s.t.Fatal(err)
	}
	until(s.t, "the server knows it", func() bool {
		for _, st := range s.Stats().VMs {
			if st.VM == name {
				return true
			}
		}
		return false
	})
	return v, l
}

// dial connects to the server as something that is no VMM.
func (s *service) dial() *net.UnixConn {
	s.t.Helper()
	c, err := net.Dial("unix", s.o.Socket)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return c.(*net.UnixConn)
}

// Whatever strangers do, VMs are served.
func TestStrangersDisturbNobody(t *testing.T) {
	o := options(t, 1000)
	o.Prefetch = false
	s := serve(t, o)
	v := startVMM(t, s.settings())
	v.do(order{Op: "touch", Pages: pagesFrom(0, 10)})

	file, err := os.Open(o.Memory)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	send := func(text string, fds ...int) *net.UnixConn {
		c := s.dial()
		var rights []byte
		if len(fds) > 0 {
			rights = syscall.UnixRights(fds...)
		}
		if _, _, err := c.WriteMsgUnix([]byte(text), rights, nil); err != nil {
			t.Fatal(err)
		}
		return c
	}
	s.dial()                   // never speaks
	_ = s.dial().Close()       // has nothing to say
	_ = send("[").Close()      // breaks off
	_ = send("[{}]\n").Close() // sends no descriptor, and nothing valid
	send(`{"request":"link"`)  // never ends its line
	send(`[{"size":`)          // nor its message
	send("\x00\xff\n")         // is no JSON
	send(`[]`, int(file.Fd())) // sends what is no userfaultfd
	send(`{"request":"fly"}` + "\n")
	send(`{"request":"stats"}`+"\n", int(file.Fd()))
	send(`[]`, int(file.Fd()), int(file.Fd()))
	send(`[]`, int(file.Fd()), int(file.Fd()), int(file.Fd()), int(file.Fd()), int(file.Fd()), int(file.Fd()))
	long := s.dial()
	go func() { _, _ = long.Write(bytes.Repeat([]byte("[ "), maxHandshake)) }()
	link := send(`{"request":"link","vm":"x"}` + "\n")
	if _, err := link.Write(append(bytes.Repeat([]byte("x"), 2*maxLine), '\n')); err != nil {
		t.Fatal(err)
	}

	v.do(order{Op: "touch", Pages: shuffled(pagesFrom(0, 1000)), Threads: 2})
	w := startVMM(t, s.settings())
	w.do(order{Op: "touch", Pages: shuffled(pagesFrom(0, 1000)), Threads: 2})
	if st := s.Stats(); len(st.VMs) != 2 || len(st.Ended) != 0 {
		t.Errorf("%+v", st)
	}
	until(t, "silent peers are given up", func() bool { return strings.Count(s.log(), "i/o timeout") >= 3 })
	// Nothing that came with the messages is open.
	names, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	open := 0
	for _, name := range names {
		if target, err := os.Readlink(name); err == nil && target == o.Memory {
			open++
		}
	}
	if open != 2 {
		t.Errorf("the memory file is open %d times, want the server's and the test's", open)
	}
	for _, text := range []string{"more than one descriptor", "not JSON", "not a userfaultfd", "no descriptor", "longer than"} {
		if !strings.Contains(s.log(), text) {
			t.Errorf("the log has no %q", text)
		}
	}
	v.quit()
	w.quit()
	s.wait()
}

// A VMM that announces what cannot be served would wait for ever.
func TestVMMThatLiesIsEnded(t *testing.T) {
	o := options(t, 100)
	o.Keep = true
	s := serve(t, o)
	settings := s.settings()
	settings.Early = true
	settings.Lie = `[{"base_host_virt_addr":4096,"size":4294967296,"offset":0,"page_size":4096}]`
	l := s.link("liar")
	v := startVMM(t, settings)
	if err := l.Attach(v.pid()); err != nil {
		t.Fatal(err)
	}
	if _, err := endOf(t, l); !errors.Is(err, ErrEnded) || !strings.Contains(err.Error(), "not in a memory file") {
		t.Errorf("its supervisor hears: %v", err)
	}
	if err := v.cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("it ended with %v", err)
	}
	if st := s.Stats(); len(st.VMs) != 0 || len(st.Ended) != 1 || st.Ended[0].PID != v.pid() {
		t.Errorf("%+v", st)
	}

	// One that faults elsewhere than it has said.
	settings.Lie = `[{"base_host_virt_addr":4096,"size":4096,"offset":0,"page_size":4096}]`
	v = startVMM(t, settings)
	v.start(order{Op: "touch", Pages: []int{5}})
	if _, err := v.end(); err == nil {
		t.Error("a page has come from nowhere")
	}
	until(t, "its end is known", func() bool { e := s.Stats().Ended; return len(e) == 2 && strings.Contains(e[1].Reason, "outside") })
}

func TestHugePagesAreExpected(t *testing.T) {
	o := options(t, 100)
	o.HugePages = true
	s := serve(t, o)
	l := s.link("small")
	settings := s.settings()
	settings.Early = true
	v := startVMM(t, settings)
	if err := l.Attach(v.pid()); err != nil {
		t.Fatal(err)
	}
	if _, err := endOf(t, l); !errors.Is(err, ErrEnded) || !strings.Contains(err.Error(), "huge pages") {
		t.Errorf("its supervisor hears: %v", err)
	}
}

func TestMemoryFileIsChangedUnderTheServer(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"cut off":   func(path string) error { return os.Truncate(path, int64(100*pageSize)) },
		"emptied":   func(path string) error { return os.Truncate(path, 0) },
		"extended":  func(path string) error { return os.Truncate(path, int64(2000*pageSize)) },
		"rewritten": func(path string) error { return os.WriteFile(path, make([]byte, 1000*pageSize), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			for _, busy := range []bool{false, true} {
				o := options(t, 1000)
				o.Prefetch = false
				s := serve(t, o)
				other := serve(t, options(t, 1000))
				w := startVMM(t, other.settings())
				v, l := s.linked("vm")
				v.do(order{Op: "touch", Pages: pagesFrom(0, 100)})
				if err := change(o.Memory); err != nil {
					t.Fatal(err)
				}
				if busy {
					_ = v.enc.Encode(order{Op: "touch", Pages: pagesFrom(900, 100)}) // it may be dead already
				}
				took, err := endOf(t, l)
				if !errors.Is(err, ErrEnded) || !strings.Contains(err.Error(), "was changed while it was in use") {
					t.Errorf("its supervisor hears: %v", err)
				}
				if took > promptly {
					t.Errorf("after %s", took)
				}
				if err := v.cmd.Wait(); err == nil {
					t.Error("it lives on")
				}
				_ = l.Close()
				s.wait()
				w.do(order{Op: "touch", Pages: shuffled(pagesFrom(0, 1000))})
			}
		})
	}
}

// The server has the file open: that its name is gone changes nothing.
func TestSnapshotIsDeletedUnderTheServer(t *testing.T) {
	s := serve(t, options(t, 1000))
	v, _ := s.linked("vm")
	if err := os.RemoveAll(filepath.Dir(s.o.Memory)); err != nil {
		t.Fatal(err)
	}
	v.start(order{Op: "touch", Pages: shuffled(pagesFrom(0, 1000))})
	// The VMM of the test has the file open, too.
	if _, err := v.end(); err != nil {
		t.Error(err)
	}
}

// A server that is killed takes nobody along, but everybody who watches knows
// at once, and the VM can be ended.
func TestServerIsKilled(t *testing.T) {
	o := options(t, 1000)
	text, err := json.Marshal(serverSettings{o.Socket, o.Memory})
	if err != nil {
		t.Fatal(err)
	}
	server := exec.Command("/proc/self/exe")
	server.Env = append(os.Environ(), serverEnv+"="+string(text), "GORACE=atexit_sleep_ms=0")
	server.Stderr = os.Stderr
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func() { _ = server.Process.Kill(); _ = server.Wait() }
	defer kill()
	if _, err := out.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}

	l, err := OpenLink(t.Context(), o.Socket, "vm")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	v := startVMM(t, vmmSettings{Socket: o.Socket, Memory: o.Memory})
	if err := l.Attach(v.pid()); err != nil {
		t.Fatal(err)
	}
	v.do(order{Op: "touch", Pages: pagesFrom(0, 100)})
	kill()
	took, err := endOf(t, l)
	if !errors.Is(err, ErrGone) || took > promptly {
		t.Errorf("its supervisor hears, after %s: %v", took, err)
	}
	if _, err := OpenLink(t.Context(), o.Socket, "vm"); !errors.Is(err, ErrGone) {
		t.Errorf("who comes later hears: %v", err)
	}
	if _, err := Query(t.Context(), o.Socket); !errors.Is(err, ErrGone) {
		t.Errorf("who asks for statistics hears: %v", err)
	}
	// The VM waits for a page that never comes, and dies all the same.
	v.start(order{Op: "touch", Pages: []int{500}})
	v.kill()

	// What it has left can be removed, and is in nobody's way.
	left := filepath.Join(t.TempDir(), "left")
	if err := os.Link(o.Socket, left); err != nil {
		t.Fatal(err)
	}
	if err := Forget(left); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(left); err == nil {
		t.Error("its socket is still there")
	}
	s := serve(t, o)
	w := startVMM(t, s.settings())
	if err := Forget(o.Socket); err != nil {
		t.Error(err)
	}
	w.do(order{Op: "touch", Pages: pagesFrom(0, 1000)})
	if _, err := Query(t.Context(), o.Socket); err != nil {
		t.Errorf("a server that runs was forgotten: %v", err)
	}
}

// When the server is told to stop, its VMs cannot go on.
func TestServerIsStopped(t *testing.T) {
	s := serve(t, options(t, 100))
	v, l := s.linked("vm")
	early := s.link("on its way")
	s.stop()
	for _, l := range []*Link{l, early} {
		if took, err := endOf(t, l); !errors.Is(err, ErrEnded) || !strings.Contains(err.Error(), "was stopped") || took > promptly {
			t.Errorf("a supervisor hears, after %s: %v", took, err)
		}
	}
	if err := v.cmd.Wait(); err == nil {
		t.Error("the VM lives on")
	}
	s.wait()
}

// A supervisor that attaches late hears what has happened since it came, and
// nothing of a VM before that.
func TestLateSupervisor(t *testing.T) {
	o := options(t, 100)
	o.Keep = true
	s := serve(t, o)
	l := s.link("late")
	v := startVMM(t, vmmSettings{Socket: o.Socket, Memory: o.Memory, Lie: `[]`, Early: true})
	until(t, "it is ended", func() bool { return len(s.Stats().Ended) == 1 })
	later := s.link("later")
	if err := errors.Join(later.Attach(v.pid()), l.Attach(v.pid())); err != nil {
		t.Fatal(err)
	}
	if _, err := endOf(t, l); !errors.Is(err, ErrEnded) || !strings.Contains(err.Error(), "regions") {
		t.Errorf("it hears: %v", err)
	}
	select {
	case <-later.Done():
		t.Errorf("who came later hears: %v", later.Err())
	case <-time.After(100 * time.Millisecond):
	}
}

func TestVMsDieAtAnyMoment(t *testing.T) {
	const pages = 2000
	o := options(t, pages)
	o.Keep = true
	s := serve(t, o)
	steady := startVMM(t, s.settings())
	for range 15 {
		v := startVMM(t, s.settings())
		v.start(order{Op: "touch", Pages: shuffled(pagesFrom(0, pages)), Threads: 4})
		time.Sleep(rand.N(20 * time.Millisecond))
		v.kill()
	}
	steady.do(order{Op: "touch", Pages: shuffled(pagesFrom(0, pages)), Threads: 4})
	until(t, "the dead have left", func() bool { return len(s.Stats().VMs) == 1 })
	for _, v := range s.Stats().Ended {
		if v.Reason != "" {
			t.Errorf("%+v", v)
		}
	}
}

func TestServerEndsByItself(t *testing.T) {
	o := options(t, 10)
	o.Unused = 50 * time.Millisecond
	unused := serve(t, o)
	unused.wait()
	if !strings.Contains(unused.log(), "no VM has come") {
		t.Errorf("log: %s", unused.log())
	}

	o = options(t, 10)
	o.Unused = 300 * time.Millisecond
	s := serve(t, o)
	l := s.link("on its way") // nor does it end while somebody watches
	time.Sleep(2 * o.Unused)
	v := startVMM(t, s.settings())
	v.quit()
	until(t, "the VM is gone", func() bool { return len(s.Stats().Ended) == 1 })
	select {
	case <-s.ended:
		t.Error("it has ended while a supervisor watches")
	default:
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	s.wait()
}

func TestOpenRefuses(t *testing.T) {
	o := options(t, 10)
	s := serve(t, o)
	if _, err := Open(o); !errors.Is(err, ErrRunning) {
		t.Errorf("a second one: %v", err)
	}
	s.stop()
	s.wait()
	for name, c := range map[string]struct {
		change func(*Options)
		want   error
		text   string
	}{
		"no memory":      {func(o *Options) { o.Memory += "x" }, ErrMemory, "no such file"},
		"a directory":    {func(o *Options) { o.Memory = filepath.Dir(o.Memory) }, ErrMemory, "no regular file"},
		"an empty file":  {func(o *Options) { o.Memory = "/dev/null" }, ErrMemory, ""},
		"half a page":    {func(o *Options) { _ = os.Truncate(o.Memory, int64(pageSize/2)) }, ErrMemory, "size"},
		"a long path":    {func(o *Options) { o.Socket = "/" + strings.Repeat("s", paths.SocketLimit) }, paths.ErrSocketPath, ""},
		"no directory":   {func(o *Options) { o.Socket = "/nonexistent/s" }, os.ErrNotExist, ""},
		"an odd window":  {func(o *Options) { o.FaultAround = 3 * pageSize }, nil, "power of two"},
		"a large window": {func(o *Options) { o.FaultAround = 2 * MaxFaultAround }, nil, "power of two"},
		"half a window":  {func(o *Options) { o.FaultAround = pageSize / 2 }, nil, "power of two"},
	} {
		o := options(t, 10)
		c.change(&o)
		_, err := Open(o)
		if err == nil || (c.want != nil && !errors.Is(err, c.want)) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Statistics are there for who asks, and stop for nobody.
func TestQuery(t *testing.T) {
	o := options(t, 100)
	o.Prefetch, o.FaultAround = false, pageSize
	s := serve(t, o)
	v, _ := s.linked("vm")
	v.do(order{Op: "touch", Pages: pagesFrom(10, 20)})
	st, err := Query(t.Context(), o.Socket)
	if err != nil || st.Snapshot != "snap" || st.PID != os.Getpid() || len(st.VMs) != 1 || st.VMs[0].VM != "vm" || st.VMs[0].Faults != 20 {
		t.Errorf("%+v, %v", st, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Query(ctx, o.Socket); err == nil {
		t.Error("it asks although it was told to stop")
	}

	// A server that never answers.
	deaf, err := net.Listen("unix", filepath.Join(t.TempDir(), "deaf"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = deaf.Close() }()
	ctx, cancel = context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("too slow"))
	defer cancel()
	if _, err := Query(ctx, deaf.Addr().String()); err == nil || !strings.Contains(err.Error(), "too slow") {
		t.Errorf("it says: %v", err)
	}
	if _, err := OpenLink(ctx, deaf.Addr().String(), "vm"); err == nil || !strings.Contains(fmt.Sprint(err), "too slow") {
		t.Errorf("a link says: %v", err)
	}
}

// Statistics of many VMs are more than a socket holds: who asks on a busy host may
// take a moment to read them.
func TestStatisticsForWhoIsSlow(t *testing.T) {
	s := serve(t, options(t, 100))
	now := time.Now()
	s.Server.mu.Lock()
	for range maxEnded {
		s.Server.ended = append(s.Server.ended, VMStats{Reason: strings.Repeat("x", maxAnswer/2/maxEnded), Ended: &now})
	}
	s.Server.mu.Unlock()
	c := s.dial()
	if err := say(c, request{Request: requestStats}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * tellTime)
	if a, err := hear(bufio.NewReader(c), maxAnswer); err != nil || a.Stats == nil || len(a.Stats.Ended) != maxEnded {
		t.Errorf("%v", err)
	}
}
