// Package memserver serves the memory of one snapshot to any number of VMs, by
// userfaultfd: the VMM maps its guest's memory empty, sends the descriptor to
// the server's socket, and the server fills each page when it is asked for.
//
// Pages that are delivered are private copies, so a server saves no memory: a
// private mapping of the file does. It buys control. Neighbours come along with
// a fault; pages of zeros are not copied; what the first VM asked for while it
// started (its working set, which is kept in a file) is pushed to the next ones
// before they ask; and memory may be on huge pages.
//
// A Server lives from Open to the end of Serve. Its socket takes two kinds of
// connections, told apart by their first byte:
//
//   - A VMM's: one message, a JSON array of regions, with the descriptor
//     (Firecracker's docs/snapshotting/handling-page-faults-on-snapshot-resume.md).
//     From then on its pages are served, until its process ends.
//   - A line of JSON, by the functions of this package: Query asks for
//     statistics. A supervisor opens a Link before it lets its VMM connect and
//     keeps it: it says when the VM is ready, upon which the recorded working
//     set is kept, and hears why the server has ended the VM, or that the
//     server itself is gone, after which its VM can only hang.
//
// A VM whose page cannot be had would wait for ever. So the server ends it, by
// SIGKILL to the process that has connected, and tells its supervisor why.
// All others go on.
//
// What this package does not do: it starts no VMs and no servers, and it does
// not keep a snapshot from being removed.
package memserver

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/fcvm/fcvm/internal/paths"
)

// ErrRunning: another server has the socket.
var ErrRunning = errors.New("a memory server is already running")

// DefaultFaultAround is how many bytes come with a fault unless told otherwise.
// A guest of Debian's kernel in Firecracker faulted, up to its first answer after
// a restore, 1,670 times when it was given 4 KiB at once, and with 8, 16, 32, 64
// and 128 KiB 1,171, 855, 565, 380 and 253 times. A fault costs as much as some
// ten pages, so that 32 and 64 KiB cost the least time, and 32 less memory.
const DefaultFaultAround = 32 << 10

// MaxFaultAround bounds it.
const MaxFaultAround = 1 << 20

// Options say what a server serves, and how.
type Options struct {
	Snapshot   string // its name, for messages
	Socket     string // path; its directory must exist
	Memory     string // the memory file's path
	WorkingSet string // path of the working set's file; empty: none is kept
	// Prefetch: record the working set if there is none, else push it ahead.
	Prefetch bool
	// FaultAround is how many bytes are delivered with a page that a VM asks
	// for: those around it, in a window that is aligned to that size. A power of
	// two, at least a page, up to MaxFaultAround; 0: DefaultFaultAround.
	// While the working set is recorded, and on huge pages, only the page.
	FaultAround int
	// Keep goes on serving when the last VM has left.
	Keep bool
	// HugePages refuses VMs that do not have their memory on huge pages of 2 MiB.
	HugePages bool
	// Unused is how long the server waits for its first VM. 0: five minutes.
	Unused time.Duration
	// Log is told, in a line of text, what happened. It is called by several
	// goroutines at once. nil: nobody listens.
	Log func(line string)
}

// CheckFaultAround refuses what Options.FaultAround cannot be.
func CheckFaultAround(bytes uint64) error {
	if page := uint64(os.Getpagesize()); bytes < page || bytes > MaxFaultAround || bytes&(bytes-1) != 0 {
		return fmt.Errorf("fault-around of %d bytes: it is a power of two from %d to %d", bytes, page, MaxFaultAround)
	}
	return nil
}

func (o *Options) complete() error {
	if o.FaultAround == 0 {
		o.FaultAround = DefaultFaultAround
	}
	if err := CheckFaultAround(uint64(o.FaultAround)); err != nil {
		return err
	}
	if o.Unused == 0 {
		o.Unused = 5 * time.Minute
	}
	if o.Log == nil {
		o.Log = func(string) {}
	}
	if len(o.Socket) > paths.SocketLimit {
		return fmt.Errorf("%w: %q", paths.ErrSocketPath, o.Socket)
	}
	return nil
}

// Server serves one snapshot.
type Server struct {
	o        Options
	mem      *memory
	listener *net.UnixListener
	started  time.Time
	over     chan struct{} // closed when nobody needs the server any more

	wg sync.WaitGroup // one for each connection

	mu        sync.Mutex
	set       bitmap // the working set; nil: none yet
	recording *recorder
	vms       map[*client]struct{}
	links     map[*link]struct{}
	ended     []VMStats // the last ones
	served    int       // VMs, since the start
	present   int       // connections, but for those that only ask for statistics
	unused    *time.Timer
	ending    bool
}

// Open looks at the memory file and the working set and makes the socket. It
// takes the place of a socket that a server has left which was killed; one
// that still serves is ErrRunning. A memory file that cannot be used is
// ErrMemory; a working set that cannot is ignored and recorded anew.
func Open(o Options) (*Server, error) {
	if err := o.complete(); err != nil {
		return nil, fmt.Errorf("open a memory server: %w", err)
	}
	mem, err := openMemory(o.Memory)
	if err != nil {
		return nil, fmt.Errorf("open a memory server: %w", err)
	}
	s := &Server{o: o, mem: mem, started: time.Now(), over: make(chan struct{}), vms: map[*client]struct{}{}, links: map[*link]struct{}{}}
	if o.Prefetch && o.WorkingSet != "" {
		if s.set, err = loadSet(o.WorkingSet, mem.page, mem.size); err != nil {
			s.logf("the working set in %s is not used and will be recorded again: %v", o.WorkingSet, err)
		}
	}
	if s.listener, err = listen(o.Socket); err != nil {
		return nil, errors.Join(fmt.Errorf("open a memory server: %w", err), mem.close())
	}
	return s, nil
}

// listen makes the socket.
func listen(path string) (*net.UnixListener, error) {
	unlock, err := lockSockets(path)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if removeStale(path) {
		return nil, fmt.Errorf("%w at %s", ErrRunning, path)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Forget removes the socket of a server that was killed. One that is served
// stays.
func Forget(socket string) error {
	unlock, err := lockSockets(socket)
	if err != nil {
		return fmt.Errorf("forget a memory server: %w", err)
	}
	defer unlock()
	removeStale(socket)
	return nil
}

// lockSockets locks the directory of a socket: to look whether it is served, and
// to remove it or make a new one, is one step.
func lockSockets(path string) (unlock func(), err error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir.Name(), err), dir.Close())
	}
	return func() { _ = dir.Close() }, nil
}

// removeStale removes a socket that nobody serves, and reports whether somebody
// does.
func removeStale(path string) (served bool) {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close()
		return true
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		_ = os.Remove(path) // else who needs it hears why not
	}
	return false
}

func (s *Server) logf(format string, args ...any) { s.o.Log(fmt.Sprintf(format, args...)) }

// Stats is what was done so far.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{
		Snapshot: s.o.Snapshot, Socket: s.o.Socket, PID: os.Getpid(), Started: s.started,
		Prefetch: s.o.Prefetch, FaultAround: s.o.FaultAround, Keep: s.o.Keep, MemorySize: s.mem.size,
		WorkingSet: s.set.count(), Recording: s.recording != nil,
		VMs: []VMStats{}, Ended: append([]VMStats{}, s.ended...),
	}
	for c := range s.vms {
		st.VMs = append(st.VMs, c.stats())
	}
	slices.SortFunc(st.VMs, func(a, b VMStats) int { return a.Connected.Compare(b.Connected) })
	return st
}
