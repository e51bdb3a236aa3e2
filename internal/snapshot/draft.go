package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/ofdlock"
	"github.com/fcvm/fcvm/internal/vm"
)

// spareSpace is left free on the disk by a snapshot, bytes.
const spareSpace = 64 << 20

// Draft is a snapshot that is being made. It ends with Commit or Abort.
type Draft struct {
	ID   string
	Name string

	// Boot is the host's, for a snapshot that need not outlive it: then its
	// files are not waited for, and if it goes with its last user, nobody reads
	// them before he asks for their digests, or gives it a name. Empty: they are
	// waited for, and have digests.
	Boot string

	store *Store
	dir   string
	lock  *os.File
}

// Begin makes room for a snapshot: name is empty for one that goes with its
// last user; need is how much it will take of the disk, at most, bytes. The
// error wraps ErrNameTaken or ErrNoSpace, before anything was written.
func (s *Store) Begin(name string, need int64) (*Draft, error) {
	d := &Draft{ID: vm.NewID(), Name: name, store: s}
	d.dir = s.draft(d.ID)
	err := s.withLock(func() error {
		if err := s.CheckFree(name); err != nil {
			return err
		}
		if err := checkSpace(s.dir, need); err != nil {
			return err
		}
		if err := os.Mkdir(d.dir, 0o700); err != nil {
			return fmt.Errorf("begin a snapshot: %w", noSpace(err, s.dir))
		}
		f, err := os.OpenFile(filepath.Join(d.dir, lockName), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err == nil {
			d.lock = f
			_, err = ofdlock.Try(f, ofdlock.Exclusive) // nobody else knows of it
		}
		if err != nil {
			d.Abort()
			return fmt.Errorf("begin a snapshot: %w", noSpace(err, s.dir))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return d, nil
}

func checkSpace(dir string, need int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("begin a snapshot: %w", err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < need+spareSpace {
		return fmt.Errorf("%w: it takes up to %d MiB, and %s has %d MiB: free some, or choose another place with --data-dir",
			ErrNoSpace, (need+spareSpace)>>20, dir, free>>20)
	}
	return nil
}

// Path is where one of the snapshot's files is to be made.
func (d *Draft) Path(name string) string { return filepath.Join(d.dir, name) }

// Abort removes the draft.
func (d *Draft) Abort() {
	_ = os.RemoveAll(d.dir)
	if d.lock != nil {
		_ = d.lock.Close()
	}
}

// Commit writes the draft to the disk, with the digests of its files (see Boot), and
// makes it a snapshot, which the caller holds. m says what it is; id, name and files
// are filled in, and the time if it has none. Files that m has already must have
// the digests that it says. After an error there is no snapshot, and no draft.
func (d *Draft) Commit(ctx context.Context, m Manifest, files []string) (*Snapshot, error) {
	m.Schema, m.ID, m.Name = Schema, d.ID, d.Name
	m.Unsynced = d.Boot
	if m.Created.IsZero() {
		m.Created = time.Now().UTC()
	}
	s, err := d.commit(ctx, &m, files)
	if err != nil {
		d.Abort()
		return nil, fmt.Errorf("save snapshot: %w", noSpace(err, d.store.dir))
	}
	return s, nil
}

func (d *Draft) commit(ctx context.Context, m *Manifest, files []string) (*Snapshot, error) {
	if err := d.seal(ctx, m, files); err != nil {
		return nil, err
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	if err := m.write(d.dir); err != nil {
		return nil, err
	}
	if err := syncFile(d.dir); err != nil {
		return nil, err
	}
	final := d.store.path(d.ID)
	err := d.store.withLock(func() error {
		// Somebody else may have taken the name meanwhile.
		if err := d.store.CheckFree(d.Name); err != nil {
			return err
		}
		// From its first moment others can hold it, and nobody can remove it.
		if _, err := ofdlock.Try(d.lock, ofdlock.Shared); err != nil {
			return err
		}
		return os.Rename(d.dir, final)
	})
	if err != nil {
		return nil, err
	}
	if err := syncFile(d.store.dir); err != nil {
		// It may go with the host's power, and whoever has asked for it is told that
		// there is none: then there is none. Abort removes it as the draft it was.
		return nil, errors.Join(err, d.store.withLock(func() error { return os.Rename(final, d.dir) }))
	}
	return &Snapshot{Manifest: *m, Dir: final, store: d.store, lock: d.lock}, nil
}

// seal makes the files unchangeable, writes them to the disk and describes
// them. Digests take the time, so they are made side by side.
func (d *Draft) seal(ctx context.Context, m *Manifest, names []string) error {
	want := m.Files
	m.Files = make([]File, len(names))
	g, ctx := errgroup.WithContext(ctx)
	for i, name := range names {
		g.Go(func() error {
			f, err := seal(ctx, d.Path(name), d.Boot == "", d.Boot == "" || !m.nameless())
			f.Name = name
			m.Files[i] = f
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, f := range want {
		if !slices.ContainsFunc(m.Files, func(g File) bool { return g.Name == f.Name && g.Digest == f.Digest }) {
			return fmt.Errorf("%w: the checksum of its %s is wrong", ErrCorrupt, f.Name)
		}
	}
	return nil
}

func seal(ctx context.Context, path string, sync, digest bool) (is File, err error) {
	f, err := os.Open(path)
	if err != nil {
		return is, err
	}
	defer func() { _ = f.Close() }()
	err = f.Chmod(modeOf(path))
	if err == nil && sync {
		err = f.Sync()
	}
	if err == nil && digest {
		is.Digest, is.Data, err = digestOf(ctx, path)
	}
	if err != nil {
		return is, err
	}
	is.Stamp, is.Size, err = stampOf(path)
	return is, err
}

// modeOf is that of a file of a snapshot, none of which ever changes. QEMU before
// 8.2 opens memory for writing all the same, though it does not write: as an
// ordinary user it could not open what its owner may only read.
func modeOf(path string) os.FileMode {
	if filepath.Base(path) == MemoryName {
		return 0o600
	}
	return 0o400
}

// syncFile waits until a file or directory is on the disk.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// noSpace says what to do about a full disk.
func noSpace(err error, dir string) error {
	full := func(e error) bool { return errors.Is(err, e) }
	if !errors.Is(err, ErrNoSpace) && slices.ContainsFunc([]error{syscall.ENOSPC, syscall.EDQUOT}, full) {
		return fmt.Errorf("%w: %s is full: free some, or choose another place with --data-dir (%w)", ErrNoSpace, dir, err)
	}
	return err
}
