// Package share serves one directory, or one file, of the host to a guest, by
// SFTP: the host's side of a live share, which the guest mounts with sshfs.
//
// The guest is hostile. Whatever it asks, nothing outside of what is shared is
// reached: a request names files by a path below the shared directory, the kernel
// resolves it beneath that directory and refuses every link on the way
// (openat2(2), RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS). An honest guest's kernel
// has followed the links itself. Only regular files and directories are opened:
// neither the host's devices nor its pipes. Bits that would lend a host's user's
// rights to others (set-user-ID, set-group-ID on files) are never set.
//
// Requests of one share are carried out one after another, in the order in which
// they come, as SFTP wants it.
package share

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrKind: what is to be shared is neither a directory nor a file.
var ErrKind = errors.New("is neither a directory nor a regular file")

// FileName is what a file that is shared by itself is called in the guest.
const FileName = "file"

// nobody is the id that a guest sees where the host's means nothing to it, as in
// a user namespace.
const nobody = 65534

// Options of a share.
type Options struct {
	// ReadOnly refuses everything that would change a file.
	ReadOnly bool
	// Trouble is called with an error of the host's that a guest cannot be told
	// (SFTP has no word for a disk that is full); nil: nobody listens.
	Trouble func(error)
}

// Share is one directory or file. It is safe for concurrent use.
type Share struct {
	root *os.File // O_PATH; of a file's share: its directory
	only string   // the name of the one file; empty: a directory is shared
	o    Options
	ids  ids

	mu    sync.Mutex
	conns map[io.Closer]bool // nil once it is closed
}

// Open opens what is to be shared. Links in the path are followed now, never
// later.
func Open(path string, o Options) (*Share, error) {
	dir, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("share %s: %w", path, err)
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("share %s: %w", path, err)
	}
	s := &Share{o: o, ids: hostIDs(), conns: map[io.Closer]bool{}}
	switch {
	case fi.Mode().IsRegular():
		s.only = filepath.Base(dir)
		dir = filepath.Dir(dir)
	case !fi.IsDir():
		return nil, fmt.Errorf("share %s: %w", path, ErrKind)
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("share %s: %w", path, &fs.PathError{Op: "open", Path: dir, Err: err})
	}
	s.root = os.NewFile(uintptr(fd), dir)
	return s, nil
}

// IsFile reports whether one file is shared, under the name FileName.
func (s *Share) IsFile() bool { return s.only != "" }

// Serve answers the requests of one client until the connection ends.
func (s *Share) Serve(conn io.ReadWriteCloser) error {
	defer func() { _ = conn.Close() }()
	s.mu.Lock()
	if s.conns == nil {
		s.mu.Unlock()
		return os.ErrClosed
	}
	s.conns[conn] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, conn)
	}()
	c := newSession(s)
	defer c.close()
	return c.serve(conn)
}

// Close ends all connections.
func (s *Share) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.Close()
	}
	s.conns = nil
	return s.root.Close()
}

// ids says which of the host's ids are which in the guest.
type ids struct {
	uid, gid int
	root     bool // this process is root's: ids are the same on both sides
}

func hostIDs() ids { return ids{os.Geteuid(), os.Getegid(), os.Geteuid() == 0} }

// toGuest returns the ids that a file of the host's has in the guest: those of
// the user who shares it are root's there.
func (m ids) toGuest(uid, gid uint32) (guestUID, guestGID uint32) {
	if m.root {
		return uid, gid
	}
	return toGuest(uid, m.uid), toGuest(gid, m.gid)
}

func toGuest(id uint32, own int) uint32 {
	if int(id) == own {
		return 0
	}
	return nobody
}

// unchanged is an id that chown(2) leaves.
const unchanged = 1<<32 - 1

// toHost returns the ids to give to a file that a guest gives away; one that the
// file has by now stays. The user who shares it can give it to nobody else.
func (m ids) toHost(uid, gid uint32, st *unix.Stat_t) (hostUID, hostGID int, err error) {
	if m.root {
		return int(int32(uid)), int(int32(gid)), nil
	}
	u, g := m.toGuest(st.Uid, st.Gid)
	hostUID, err = toHost(uid, u, m.uid)
	if err != nil {
		return 0, 0, err
	}
	hostGID, err = toHost(gid, g, m.gid)
	return hostUID, hostGID, err
}

func toHost(id, now uint32, own int) (int, error) {
	switch id {
	case unchanged, now:
		return -1, nil
	case 0:
		return own, nil
	}
	return 0, unix.EPERM
}
