package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/fcvm/fcvm/internal/ofdlock"
	"github.com/fcvm/fcvm/internal/proc"
)

// Snapshot is one that is held: it stays, with all its files, until Release.
type Snapshot struct {
	Manifest Manifest
	Dir      string

	store *Store
	lock  *os.File
}

// Path is that of one of its files.
func (s *Snapshot) Path(name string) string { return filepath.Join(s.Dir, name) }

// Memory and State are the two files of the VMM.
func (s *Snapshot) Memory() string { return s.Path(MemoryName) }

// State is the file of the VMM's own.
func (s *Snapshot) State() string { return s.Path(StateName) }

// Release lets it go. One that has no name goes with its last user.
func (s *Snapshot) Release() {
	if s.lock == nil {
		return
	}
	_ = s.lock.Close()
	s.lock = nil
	if s.Manifest.nameless() {
		_ = s.store.removeIf(s.Manifest.ID, (*Manifest).nameless) // while others use it, it stays
	}
}

// HandOver lets it go, and leaves it to somebody who has been told of it: even
// without a name it stays for a moment (sweepAge).
func (s *Snapshot) HandOver() {
	if s.lock != nil {
		_ = s.lock.Close()
		s.lock = nil
	}
}

// Hold takes a snapshot into use. The error wraps ErrNotFound when it has been
// removed.
func (s *Store) Hold(id string) (*Snapshot, error) {
	l, err := lockDir(s.path(id), ofdlock.Shared)
	if err == nil && l == nil {
		err = fs.ErrNotExist // who has it for himself is removing it
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	if err != nil {
		return nil, fmt.Errorf("use snapshot %s: %w", id, err)
	}
	m, err := readManifest(filepath.Join(s.path(id), manifestName), id)
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("use snapshot %s: %w", id, err)
	}
	return &Snapshot{Manifest: m, Dir: s.path(id), store: s, lock: l}, nil
}

// Verify says whether the files are what they were when the snapshot was
// taken. A file whose stamp is right has not been written since; of the others,
// and of all if thorough, or if the host has been restarted since somebody wrote
// them and did not wait, the contents are read. Digests that nobody has needed yet
// are made. The error wraps ErrCorrupt.
func (s *Snapshot) Verify(ctx context.Context, thorough bool) error {
	if err := s.complete(ctx); err != nil {
		return err
	}
	return s.verify(ctx, thorough)
}

// Check is Verify for a start, which need not wait for digests: files that have
// none are what they were as long as their stamps are right.
func (s *Snapshot) Check(ctx context.Context) error { return s.verify(ctx, false) }

// complete makes the digests that the files do not have yet.
func (s *Snapshot) complete(ctx context.Context) error {
	if !slices.ContainsFunc(s.Manifest.Files, func(f File) bool { return f.Digest == "" }) {
		return nil
	}
	if err := s.Check(ctx); err != nil {
		return err
	}
	for i := range s.Manifest.Files {
		f := &s.Manifest.Files[i]
		if f.Digest != "" {
			continue
		}
		is, err := seal(ctx, s.Path(f.Name), false, true)
		if err != nil {
			return fmt.Errorf("read snapshot %s: %w", s.Manifest.Title(), err)
		}
		if !is.Stamp.equal(f.Stamp) || is.Size != f.Size {
			return s.unknown(f.Name)
		}
		f.Digest, f.Data = is.Digest, is.Data
	}
	return s.store.withLock(s.restamp)
}

// keep makes of a snapshot that need not outlive the host's boot one that does.
func (s *Snapshot) keep(ctx context.Context) error {
	if s.Manifest.Unsynced == "" {
		return nil
	}
	if err := s.Verify(ctx, false); err != nil {
		return err
	}
	for _, f := range s.Manifest.Files {
		if err := syncFile(s.Path(f.Name)); err != nil {
			return fmt.Errorf("keep snapshot %s: %w", s.Manifest.Title(), err)
		}
	}
	s.Manifest.Unsynced = ""
	return s.store.withLock(s.restamp)
}

// unknown is for a file that has no digest, and is not known by its stamp either.
func (s *Snapshot) unknown(name string) error {
	return fmt.Errorf("%w: %s: nobody knows whether its %s is what it was: it has no checksum yet, and was touched, or the host was restarted", ErrCorrupt, s.Manifest.Title(), name)
}

func (s *Snapshot) verify(ctx context.Context, thorough bool) error {
	rebooted := s.Manifest.Unsynced != "" && s.Manifest.Unsynced != proc.BootID()
	thorough, restamped := thorough || rebooted, rebooted
	for i := range s.Manifest.Files {
		f := &s.Manifest.Files[i]
		stamp, size, err := stampOf(s.Path(f.Name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("%w: %s: its %s is missing", ErrCorrupt, s.Manifest.Title(), f.Name)
		case err != nil:
			return fmt.Errorf("check snapshot %s: %w", s.Manifest.Title(), err)
		case size != f.Size:
			return fmt.Errorf("%w: %s: its %s has %d bytes, not %d", ErrCorrupt, s.Manifest.Title(), f.Name, size, f.Size)
		case stamp.equal(f.Stamp) && !thorough:
			continue
		case f.Digest == "":
			return s.unknown(f.Name)
		}
		digest, err := Digest(ctx, s.Path(f.Name))
		if err != nil {
			return fmt.Errorf("check snapshot %s: %w", s.Manifest.Title(), err)
		}
		if digest != f.Digest {
			return fmt.Errorf("%w: %s: the checksum of its %s is wrong", ErrCorrupt, s.Manifest.Title(), f.Name)
		}
		if !stamp.equal(f.Stamp) {
			f.Stamp, restamped = stamp, true
		}
	}
	if rebooted {
		s.Manifest.Unsynced = ""
	}
	if restamped {
		// It was copied or touched, and is well. Else it would be read again
		// each time; a directory that cannot be written to costs only that.
		_ = s.store.withLock(s.restamp)
	}
	return nil
}

// restamp writes down how the files are, beside what else the manifest says by
// now: somebody may have given the snapshot another name.
func (s *Snapshot) restamp() error {
	m, err := readManifest(filepath.Join(s.Dir, manifestName), s.Manifest.ID)
	if err != nil {
		return err
	}
	m.Files, m.Unsynced = s.Manifest.Files, s.Manifest.Unsynced
	s.Manifest = m
	return m.write(s.Dir)
}

func (s Stamp) equal(o Stamp) bool { return s.Inode == o.Inode && s.MTime.Equal(o.MTime) }

func stampOf(path string) (Stamp, int64, error) {
	st, err := os.Lstat(path)
	if err != nil {
		return Stamp{}, 0, err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !st.Mode().IsRegular() {
		return Stamp{}, 0, fmt.Errorf("%s is no regular file", path)
	}
	return Stamp{Inode: sys.Ino, MTime: st.ModTime().UTC().Truncate(time.Nanosecond)}, st.Size(), nil
}

// lockDir locks a snapshot or draft until the file that it returns is closed;
// nil: others have it.
func lockDir(dir string, how ofdlock.Kind) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	ok, err := ofdlock.Try(f, how)
	if err == nil && ok {
		err = sameFile(f, filepath.Join(dir, lockName))
	}
	if err != nil || !ok {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// sameFile is fs.ErrNotExist when the file has lost its name since it was
// opened.
func sameFile(f *os.File, path string) error {
	mine, err := f.Stat()
	if err != nil {
		return err
	}
	now, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !os.SameFile(mine, now) {
		return fs.ErrNotExist
	}
	return nil
}

// inUse reports whether somebody holds the snapshot.
func (s *Store) inUse(id string) bool {
	f, err := os.Open(filepath.Join(s.path(id), lockName))
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	return ofdlock.Held(f)
}
