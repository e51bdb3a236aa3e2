package memserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/uffd"
)

// roleEnv has this test's program play another part: its value is a JSON of
// that part's settings.
const (
	vmmEnv    = "FCVM_MEMSERVER_TEST_VMM"
	serverEnv = "FCVM_MEMSERVER_TEST_SERVER"
)

var pageSize = os.Getpagesize()

func TestMain(m *testing.M) {
	var err error
	switch {
	case os.Getenv(vmmEnv) != "":
		err = playVMM([]byte(os.Getenv(vmmEnv)))
	case os.Getenv(serverEnv) != "":
		err = playServer([]byte(os.Getenv(serverEnv)))
	default:
		goleak.VerifyTestMain(m)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serverSettings are those of the part of a server.
type serverSettings struct{ Socket, Memory string }

// playServer serves in a process of its own, to be killed.
func playServer(settings []byte) error {
	var o serverSettings
	if err := json.Unmarshal(settings, &o); err != nil {
		return err
	}
	s, err := Open(Options{Socket: o.Socket, Memory: o.Memory})
	if err != nil {
		return err
	}
	fmt.Println("open")
	return s.Serve(context.Background())
}

// vmmSettings are those of the part of a VMM that restores a snapshot.
type vmmSettings struct {
	Socket string
	Memory string // its path
	Mapped bool   // privately, as without a server
	Huge   bool
	Lie    string // announced instead of the true regions
	Early  bool   // it says that it has started before it connects: it may not live to say so later
}

// order is what a test has the VMM do.
type order struct {
	Op      string // touch, drop, churn
	Pages   []int  // touch, drop
	Threads int    // touch
	Micros  int    // churn: how long
}

type report struct {
	Err   string
	Nanos int64
}

// machine is the VMM's memory. It has the file's two halves in the opposite
// order, and a gap between them.
type machine struct {
	file   *os.File
	fd     *uffd.FD
	page   int
	pages  int
	mem    []byte
	half   int // bytes
	gap    int // bytes
	mapped bool

	mu      sync.Mutex
	dropped map[int]bool
}

func (m *machine) at(page int) []byte {
	off := page * m.page
	if !m.mapped {
		if off < m.half {
			off += m.half + m.gap
		} else {
			off -= m.half
		}
	}
	return m.mem[off : off+m.page]
}

func playVMM(settings []byte) error {
	// A collection would wait for threads that are in faults.
	debug.SetGCPercent(-1)
	var s vmmSettings
	if err := json.Unmarshal(settings, &s); err != nil {
		return err
	}
	m, err := newMachine(s)
	if err != nil {
		return err
	}
	if s.Early {
		fmt.Println("{}")
	}
	if !s.Mapped {
		c, err := m.announce(s)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
	}
	if !s.Early {
		fmt.Println("{}")
	}
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o order
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var r report
		start := time.Now()
		if err := m.obey(o); err != nil {
			r.Err = err.Error()
		}
		r.Nanos = int64(time.Since(start))
		if err := out.Encode(r); err != nil {
			return err
		}
	}
}

func newMachine(s vmmSettings) (*machine, error) {
	f, err := os.Open(s.Memory)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	m := &machine{file: f, page: pageSize, mapped: s.Mapped, dropped: map[int]bool{}}
	flags := unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE
	if s.Huge {
		m.page = hugePage
		flags |= unix.MAP_HUGETLB
	}
	m.pages, m.half, m.gap = int(st.Size())/m.page, int(st.Size())/m.page/2*m.page, m.page
	if s.Mapped {
		m.mem, err = unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
		return m, err
	}
	m.mem, err = unix.Mmap(-1, 0, int(st.Size())+m.gap, unix.PROT_READ|unix.PROT_WRITE, flags)
	return m, err
}

// announce does what Firecracker does when it loads a snapshot.
func (m *machine) announce(s vmmSettings) (*net.UnixConn, error) {
	var err error
	if m.fd, err = uffd.Open(uffd.FeatureEventRemove); err != nil {
		return nil, err
	}
	base := uint64(uintptr(unsafe.Pointer(&m.mem[0])))
	size := uint64(m.pages * m.page)
	high, half := size-uint64(m.half), uint64(m.half)
	regions := []map[string]uint64{
		{"base_host_virt_addr": base + half + uint64(m.gap), "size": half, "offset": 0, "page_size": uint64(m.page), "page_size_kib": uint64(m.page)},
		{"base_host_virt_addr": base, "size": high, "offset": half, "page_size": uint64(m.page), "page_size_kib": uint64(m.page)},
	}
	for _, r := range regions {
		if err := m.fd.Register(r["base_host_virt_addr"], r["size"]); err != nil {
			return nil, err
		}
	}
	text, err := json.Marshal(regions)
	if err != nil {
		return nil, err
	}
	if s.Lie != "" {
		text = []byte(s.Lie)
	}
	c, err := net.Dial("unix", s.Socket)
	if err != nil {
		return nil, err
	}
	conn := c.(*net.UnixConn)
	ctlErr := m.fd.Control(func(fd uintptr) {
		_, _, err = conn.WriteMsgUnix(text, syscall.UnixRights(int(fd)), nil)
	})
	return conn, errors.Join(err, ctlErr)
}

func (m *machine) obey(o order) error {
	switch o.Op {
	case "touch":
		return m.touch(o.Pages, max(1, o.Threads))
	case "drop":
		for _, p := range o.Pages {
			if err := m.drop(p); err != nil {
				return err
			}
		}
		return nil
	case "churn":
		return m.churn(time.Duration(o.Micros) * time.Microsecond)
	}
	return fmt.Errorf("unknown order %q", o.Op)
}

// touch reads pages, each thread its part, and compares them with the file.
func (m *machine) touch(pages []int, threads int) error {
	errs := make([]error, threads)
	var wg sync.WaitGroup
	part := (len(pages) + threads - 1) / threads
	for i := range threads {
		mine := pages[min(i*part, len(pages)):min((i+1)*part, len(pages))]
		wg.Go(func() {
			want := make([]byte, m.page)
			for _, p := range mine {
				got := m.at(p)
				_ = got[p%m.page] // the fault, anywhere in the page
				if err := m.compare(p, got, want); err != nil {
					errs[i] = err
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (m *machine) compare(page int, got, want []byte) error {
	m.mu.Lock()
	dropped := m.dropped[page]
	m.mu.Unlock()
	if dropped {
		clear(want)
	} else if _, err := m.file.ReadAt(want, int64(page*m.page)); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("page %d (dropped %t) begins with %x instead of %x", page, dropped, got[:16], want[:16])
	}
	return nil
}

func (m *machine) drop(page int) error {
	m.mu.Lock()
	m.dropped[page] = true
	m.mu.Unlock()
	return unix.Madvise(m.at(page), unix.MADV_DONTNEED)
}

// churn has threads that read any page while others give pages back. What was
// given back is zeros, from the moment on that the call has returned.
func (m *machine) churn(d time.Duration) error {
	end := time.Now().Add(d)
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		wg.Go(func() {
			zeros := make([]byte, m.page)
			for time.Now().Before(end) && errs[i] == nil {
				// A part of the pages is this thread's to give back.
				p := rand.IntN(m.pages)/len(errs)*len(errs) + i
				if p >= m.pages {
					continue
				}
				if rand.IntN(4) == 0 {
					errs[i] = m.drop(p)
				}
				m.mu.Lock()
				dropped := m.dropped[p]
				m.mu.Unlock()
				if got := m.at(p); dropped && !bytes.Equal(got, zeros) {
					errs[i] = fmt.Errorf("page %d was given back and has %x", p, got[:16])
				}
				_ = m.at(rand.IntN(m.pages))[0] // anybody's
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// fakeVMM is a process that plays a VMM, for the test that has started it.
type fakeVMM struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	enc *json.Encoder
	dec *json.Decoder
}

// startVMM starts one. It ends with the test at the latest.
func startVMM(t testing.TB, s vmmSettings) *fakeVMM {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	v := &fakeVMM{t: t, cmd: exec.Command("/proc/self/exe")}
	v.cmd.Env = append(os.Environ(), vmmEnv+"="+string(text), "GORACE=atexit_sleep_ms=0")
	v.cmd.Stderr = os.Stderr
	v.in, err = v.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := v.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.kill)
	v.enc, v.dec = json.NewEncoder(v.in), json.NewDecoder(out)
	var r report
	if err := v.dec.Decode(&r); err != nil {
		t.Fatalf("the VMM does not start: %v", err)
	}
	return v
}

func (v *fakeVMM) pid() int { return v.cmd.Process.Pid }

func (v *fakeVMM) kill() {
	_ = v.cmd.Process.Kill()
	_ = v.cmd.Wait()
}

// start gives an order, and end waits for its report.
func (v *fakeVMM) start(o order) {
	v.t.Helper()
	if err := v.enc.Encode(o); err != nil {
		v.t.Fatal(err)
	}
}

func (v *fakeVMM) end() (report, error) {
	var r report
	stuck := time.AfterFunc(time.Minute, func() { _ = v.cmd.Process.Kill() })
	defer stuck.Stop()
	err := v.dec.Decode(&r)
	if err == nil && r.Err != "" {
		err = errors.New(r.Err)
	}
	return r, err
}

func (v *fakeVMM) do(o order) time.Duration {
	v.t.Helper()
	v.start(o)
	r, err := v.end()
	if err != nil {
		v.t.Fatalf("%s: %v", o.Op, err)
	}
	return time.Duration(r.Nanos)
}

// quit ends it as one that has nothing more to do.
func (v *fakeVMM) quit() {
	_ = v.in.Close()
	_ = v.cmd.Wait()
}

func pagesFrom(first, n int) []int {
	pages := make([]int, n)
	for i := range pages {
		pages[i] = first + i
	}
	return pages
}

func shuffled(pages []int) []int {
	s := slices.Clone(pages)
	rand.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
	return s
}
