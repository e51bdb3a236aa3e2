package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/sftp"
)

const (
	sshfs = "/usr/bin/sshfs"

	// shareTimeout bounds the time from a share's first request to its mount.
	shareTimeout = time.Minute
	sharePoll    = 2 * time.Millisecond

	maxShareError = 4 << 10 // bytes of what sshfs says
)

// shares are the host's directories that this guest has mounted. Each has an
// sshfs, which lives as long as the guest, and a relay between that and the
// host: an sshfs knows only one connection, and the guest may be restored from
// a snapshot, where all of them are lost.
type shares struct {
	agent *agent

	mu     sync.Mutex
	known  map[string]bool // of the plan; the value: for reading only
	active map[string]*mountedShare
}

// mountedShare is one of them.
type mountedShare struct {
	relay *sftp.Relay
	ready chan struct{} // closed when it is mounted, or never will be
	err   error         // valid once ready is closed
}

func newShares(a *agent) *shares {
	return &shares{agent: a, known: map[string]bool{}, active: map[string]*mountedShare{}}
}

// prepareMounts mounts disks, and gets ready for shares. It is done before there
// is a container: see loadExtra.
func (a *agent) prepareMounts(mounts []agentapi.Mount) error {
	for _, m := range mounts {
		if m.Share == "" {
			if err := mountDisk(m); err != nil {
				return err
			}
			continue
		}
		if strings.ContainsRune(m.Share, '/') {
			return fmt.Errorf("share %q: it is not a name", m.Share)
		}
		a.shares.mu.Lock()
		a.shares.known[m.Share] = m.ReadOnly
		a.shares.mu.Unlock()
		if err := a.loadNow(fuseModule); err != nil {
			return err
		}
	}
	return nil
}

// diskDir is where a disk of the plan's mounts is mounted in the guest.
func diskDir(n int) string { return fmt.Sprintf("%s/vd%c", disksDir, 'a'+n) }

func mountDisk(m agentapi.Mount) error {
	d := mount{source: fmt.Sprintf("/dev/vd%c", 'a'+m.Disk), target: diskDir(m.Disk), fstype: "ext4"}
	if m.ReadOnly && !m.Own {
		d.flags, d.data = unix.MS_RDONLY, "noload" // a disk that cannot be written has its journal left alone
	}
	if err := waitFor(d.source); err != nil {
		return err
	}
	if err := d.do(); err != nil {
		return err
	}
	switch {
	case m.Own:
		if err := furnish(d.target, m, openImage); err != nil {
			return err
		}
		if m.ReadOnly {
			return unix.Mount("", d.target, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}
	case m.ReadOnly:
		return checkFinished(d.target, m)
	}
	return nil
}

// bind is what Podman is told of a mount.
func bind(m agentapi.Mount) string {
	source := diskDir(m.Disk)
	if m.Share != "" {
		source = filepath.Join(sharesDir, m.Share)
	}
	if m.File {
		source = filepath.Join(source, agentapi.ShareFile)
	}
	if m.ReadOnly {
		return source + ":" + m.Target + ":ro"
	}
	return source + ":" + m.Target
}

// postShare takes a connection by which the host serves a share.
func (a *agent) postShare(w http.ResponseWriter, r *http.Request) {
	var req agentapi.ShareRequest
	if !decode(w, r, &req) {
		return
	}
	if _, err := a.state.waitReady(r.Context()); err != nil {
		replyError(w, http.StatusServiceUnavailable, err)
		return
	}
	m, err := a.shares.get(req.Name)
	if err != nil {
		replyError(w, http.StatusConflict, err)
		return
	}
	conn, err := upgrade(w, r)
	if err != nil {
		return
	}
	if err := m.relay.Connect(conn); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		a.log.Warn("the connection of a share was lost", "share", req.Name, "error", err)
	}
}

// get returns a share of the plan, and mounts it when it is asked for first.
func (s *shares) get(name string) (*mountedShare, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	readOnly, ok := s.known[name]
	if !ok {
		return nil, fmt.Errorf("the plan has no share %q", name)
	}
	if m := s.active[name]; m != nil {
		return m, nil
	}
	m, err := s.start(name, readOnly)
	if err != nil {
		return nil, fmt.Errorf("mount the share %s: %w", name, err)
	}
	s.active[name] = m
	return m, nil
}

func (s *shares) start(name string, readOnly bool) (*mountedShare, error) {
	dir := filepath.Join(sharesDir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "relay"), os.NewFile(uintptr(fds[1]), "sshfs")
	defer func() { _ = theirs.Close() }()
	client, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		return nil, err
	}
	said, err := os.CreateTemp(runDir, "sshfs-*")
	if err != nil {
		_ = client.Close()
		return nil, err
	}
	_ = os.Remove(said.Name())
	cmd := exec.Command(sshfs, append(sftp.Sshfs(sshfs, readOnly), dir)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, said
	cmd.Dir = "/"
	child, err := s.agent.spawn.start(cmd)
	if err != nil {
		_, _ = client.Close(), said.Close()
		return nil, err
	}
	m := &mountedShare{relay: sftp.NewRelay(client), ready: make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		<-child.done
		close(ended)
		s.agent.log.Warn("sshfs has ended", "share", name)
	}()
	go func() { _ = m.relay.Run() }()
	go func() {
		defer close(m.ready)
		defer func() { _ = said.Close() }()
		m.err = waitMounted(dir, ended, said)
	}()
	return m, nil
}

// waitMounted waits until sshfs has mounted a share.
func waitMounted(dir string, ended <-chan struct{}, said *os.File) error {
	deadline := time.After(shareTimeout)
	tick := time.NewTicker(sharePoll)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			var st unix.Statfs_t
			if isMount(dir) && unix.Statfs(dir, &st) == nil && st.Type == unix.FUSE_SUPER_MAGIC {
				return nil
			}
		case <-ended:
			b := make([]byte, maxShareError)
			n, _ := said.ReadAt(b, 0)
			return fmt.Errorf("sshfs has ended: %s", strings.TrimSpace(string(b[:n])))
		case <-deadline:
			return fmt.Errorf("it was not there after %s", shareTimeout)
		}
	}
}

// isMount reports whether something is mounted at a directory, without asking
// whoever serves it.
func isMount(dir string) bool {
	var here, above unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_STATX_DONT_SYNC
	if unix.Statx(unix.AT_FDCWD, dir, flags, unix.STATX_TYPE, &here) != nil ||
		unix.Statx(unix.AT_FDCWD, filepath.Dir(dir), flags, unix.STATX_TYPE, &above) != nil {
		return false
	}
	return here.Dev_major != above.Dev_major || here.Dev_minor != above.Dev_minor
}

// wait waits until all shares of the plan are mounted. The host has asked for
// each before it starts the container.
func (s *shares) wait() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.known {
		m := s.active[name]
		if m == nil {
			return fmt.Errorf("the host serves no share %s", name)
		}
		<-m.ready
		if m.err != nil {
			return fmt.Errorf("mount the share %s: %w", name, m.err)
		}
	}
	return nil
}

// freezeDisks has everything of the plan's disks written to where it belongs, and
// nothing more written, so that others can mount them, read-only as well. Their
// container may not be gone yet.
func freezeDisks() {
	const fifreeze = 0xc0045877 // FIFREEZE, linux/fs.h
	dirs, err := filepath.Glob(disksDir + "/*")
	if err != nil {
		return
	}
	for _, dir := range dirs {
		f, err := os.Open(dir)
		if err != nil {
			continue
		}
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, f.Fd(), fifreeze, 0) // one that is mounted read-only refuses
		_ = f.Close()
	}
}
