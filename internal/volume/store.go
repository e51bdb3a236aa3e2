package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fcvm/fcvm/internal/atomicfile"
	"github.com/fcvm/fcvm/internal/ofdlock"
	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/rootfs"
	"github.com/fcvm/fcvm/internal/vm"
)

// Sentinel errors of the store.
var (
	ErrNotFound = errors.New("no such volume")
	ErrExists   = errors.New("volume exists")
)

// newPrefix begins the name of a volume that is being made. No volume's name
// begins with a dot.
const (
	newPrefix  = ".new-"
	newMaxAge  = time.Hour
	goneSuffix = ".gone"
)

const maxInfo = 1 << 20 // bytes

// Info is a named volume.
type Info struct {
	Name    string            `json:"name"`
	SizeMiB int               `json:"size_mib"`
	Created time.Time         `json:"created"`
	Labels  map[string]string `json:"labels,omitempty"`
}

// Store is the named volumes of one data directory: an ext4 file each, that a
// VM writes or many read. It is safe for concurrent use, by any number of
// processes.
type Store struct{ layout paths.Layout }

// NewStore returns the volumes of a data directory.
func NewStore(l paths.Layout) *Store { return &Store{l} }

// Create makes an empty volume. The error wraps ErrExists when there is one of
// that name.
func (s *Store) Create(ctx context.Context, info Info) (err error) {
	if err := CheckName(info.Name); err != nil {
		return err
	}
	if info.SizeMiB < MinSizeMiB || info.SizeMiB > MaxSizeMiB {
		return fmt.Errorf("%w: volume %s of %d MiB: it has %d MiB to %d TiB", vm.ErrInvalid, info.Name, info.SizeMiB, MinSizeMiB, MaxSizeMiB>>20)
	}
	if _, err := os.Lstat(string(s.layout.Volume(info.Name))); err == nil {
		return fmt.Errorf("create volume %s: %w", info.Name, ErrExists)
	}
	if err := os.MkdirAll(s.layout.Volumes(), 0o700); err != nil {
		return fmt.Errorf("create volume %s: %w", info.Name, err)
	}
	s.sweep()
	work, err := os.MkdirTemp(s.layout.Volumes(), newPrefix)
	if err != nil {
		return fmt.Errorf("create volume %s: %w", info.Name, err)
	}
	defer func() { _ = os.RemoveAll(work) }()
	d := paths.VolumeDir(work)
	info.Created = time.Now().UTC()
	b, err := json.MarshalIndent(info, "", "  ")
	if err == nil {
		err = rootfs.Volume(ctx, d.Disk(), int64(info.SizeMiB)<<20, "")
	}
	if err == nil {
		err = errors.Join(atomicfile.Write(d.Info(), append(b, '\n'), 0o600), os.WriteFile(d.Lock(), nil, 0o600))
	}
	if err == nil {
		err = os.Rename(work, string(s.layout.Volume(info.Name)))
		if errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrPermission) { // it is a directory that is not empty
			err = ErrExists
		}
	}
	if err != nil {
		return fmt.Errorf("create volume %s: %w", info.Name, err)
	}
	return nil
}

// sweep drops what a process that was killed has left. What cannot be dropped
// now is tried again next time.
func (s *Store) sweep() {
	entries, err := os.ReadDir(s.layout.Volumes())
	if err != nil {
		return
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if fi, err := e.Info(); err == nil && time.Since(fi.ModTime()) > newMaxAge {
			_ = os.RemoveAll(filepath.Join(s.layout.Volumes(), e.Name()))
		}
	}
}

// List returns all volumes by name.
func (s *Store) List() ([]Info, error) {
	entries, err := os.ReadDir(s.layout.Volumes())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	var (
		list   []Info
		failed []error
	)
	for _, e := range entries {
		if CheckName(e.Name()) != nil {
			continue
		}
		info, err := s.Get(e.Name())
		if errors.Is(err, ErrNotFound) {
			continue // it has just gone
		}
		if err != nil {
			failed = append(failed, err)
			continue
		}
		list = append(list, info)
	}
	slices.SortFunc(list, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return list, errors.Join(failed...)
}

// Get returns a volume. The error wraps ErrNotFound when there is none.
func (s *Store) Get(name string) (Info, error) {
	if err := CheckName(name); err != nil {
		return Info{}, err
	}
	f, err := os.Open(s.layout.Volume(name).Info())
	if errors.Is(err, fs.ErrNotExist) {
		return Info{}, fmt.Errorf("%w: %q (list them with: fcvm volume ls)", ErrNotFound, name)
	}
	if err != nil {
		return Info{}, fmt.Errorf("read volume %s: %w", name, err)
	}
	defer func() { _ = f.Close() }()
	fi, err := f.Stat()
	if err == nil && fi.Size() > maxInfo {
		err = fmt.Errorf("%s is larger than %d bytes", f.Name(), maxInfo)
	}
	var info Info
	if err == nil {
		err = json.NewDecoder(f).Decode(&info)
	}
	if err != nil {
		return Info{}, fmt.Errorf("read volume %s: %w", name, err)
	}
	info.Name = name
	return info, nil
}

// Path is where a volume's disk lies.
func (s *Store) Path(name string) string { return s.layout.Volume(name).Disk() }

// takeTries is how often a volume may be removed while it is being taken.
const takeTries = 5

// Take holds a volume for a VM. One that is to be written, and is not there, is
// made.
func (s *Store) Take(ctx context.Context, m vm.Mount) (*Hold, error) {
	if err := CheckName(m.Source); err != nil {
		return nil, err
	}
	d := s.layout.Volume(m.Source)
	var missing error
	for range takeTries {
		h, err := s.take(d, m)
		if !errors.Is(err, fs.ErrNotExist) {
			return h, err
		}
		missing = err
		err = s.Create(ctx, Info{Name: m.Source, SizeMiB: m.SizeMiB})
		if err != nil && !errors.Is(err, ErrExists) {
			return nil, err
		}
	}
	// It is there, and comes and goes in one step: not all of it is there.
	return nil, fmt.Errorf("%w; the volume is damaged: put the file back, or remove %s", missing, d)
}

func (s *Store) take(d paths.VolumeDir, m vm.Mount) (*Hold, error) {
	f, err := os.OpenFile(d.Lock(), os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("attach volume %s: %w", m.Source, err)
	}
	h, err := hold(f, d.Disk(), m.ReadOnly, ofdlock.Try)
	if err != nil {
		return nil, fmt.Errorf("attach volume %s: %w", m.Source, err)
	}
	// It may have been removed since its lock was opened.
	mine, err := f.Stat()
	if err == nil {
		var now os.FileInfo
		if now, err = os.Stat(d.Lock()); err == nil && !os.SameFile(mine, now) {
			err = fs.ErrNotExist
		}
	}
	if err == nil {
		var unclean bool
		if _, unclean, err = lookAtDisk(d.Disk()); unclean && m.ReadOnly {
			err = errUnclean
		}
	}
	if err != nil {
		_ = h.Close()
		return nil, fmt.Errorf("attach volume %s: %w", m.Source, err)
	}
	return h, nil
}

// InUse reports whether a VM that runs uses a volume. It disturbs nobody who is
// about to.
func (s *Store) InUse(name string) bool {
	f, err := os.Open(s.layout.Volume(name).Lock())
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	return ofdlock.Held(f)
}

// Remove drops a volume with all that is in it. The error wraps ErrInUse when a
// VM that runs uses it.
func (s *Store) Remove(name string) error {
	if _, err := s.Get(name); errors.Is(err, ErrNotFound) || errors.Is(err, vm.ErrInvalid) {
		return err
	}
	d := s.layout.Volume(name)
	h, err := s.take(d, vm.Mount{Source: name})
	if errors.Is(err, ErrInUse) {
		return fmt.Errorf("remove volume %s: it %w by a VM that runs", name, ErrInUse)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a lock that is missing is nobody's
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	if h != nil {
		defer func() { _ = h.Close() }()
	}
	gone, err := os.MkdirTemp(s.layout.Volumes(), newPrefix)
	if err == nil {
		err = os.Rename(string(d), filepath.Join(gone, name+goneSuffix)) // out of sight in one step
		err = errors.Join(err, os.RemoveAll(gone))
	}
	if err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	return nil
}
