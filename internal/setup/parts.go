package setup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// removeTimeout bounds the wait for a setup that runs.
const removeTimeout = 10 * time.Second

// Part is a thing that some setup has installed, or left behind.
type Part struct {
	Kind    PartKind
	ID      string
	Path    string
	Current bool // new VMs take it
}

// PartKind says what a part is.
type PartKind string

// The kinds of parts.
const (
	PartKernel   PartKind = "kernel"
	PartRoot     PartKind = "guest root"
	PartVMM      PartKind = "VMM"
	PartLeftover PartKind = "leftover" // of a setup that was interrupted, or of one that runs
)

// Parts lists all that is installed.
func (s *Setup) Parts() ([]Part, error) {
	m, err := s.Manifest()
	if err != nil {
		return nil, err // without it everything would look unused
	}
	var parts []Part
	for _, p := range []struct {
		kind    PartKind
		dir     string
		current *Artifact
	}{
		{PartKernel, s.layout.Kernels(), m.Kernel},
		{PartRoot, s.layout.Roots(), m.Rootfs},
		{PartVMM, s.layout.Bin(), m.Firecracker},
	} {
		entries, err := os.ReadDir(p.dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list what is installed: %w", err)
		}
		for _, e := range entries {
			part := Part{Kind: p.kind, ID: e.Name(), Path: filepath.Join(p.dir, e.Name())}
			part.Current = p.current != nil && e.Name() == p.current.ID
			switch {
			case strings.HasPrefix(e.Name(), workPrefix):
				part.Kind = PartLeftover
			case !e.IsDir() || !isID(e.Name()):
				continue // not ours
			}
			parts = append(parts, part)
		}
	}
	return parts, nil
}

// isID reports whether a directory's name is one that setup gives.
func isID(name string) bool {
	return len(name) == idLength && strings.Trim(name, "0123456789abcdef") == ""
}

// Hold keeps what is installed from being removed until release is called. A
// supervisor holds it from its look at Artifacts until it has recorded what
// its VM uses.
func (s *Setup) Hold(ctx context.Context) (release func(), err error) {
	if err := os.MkdirAll(s.layout.Data, 0o700); err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	l := flock.New(s.layout.UseLock(), flock.SetPermissions(0o600))
	if _, err := l.TryRLockContext(ctx, lockPoll); err != nil {
		return nil, fmt.Errorf("wait for fcvm system prune: %w", err)
	}
	return func() { _ = l.Close() }, nil
}

// Remove drops a part that is not Current any more, unless inUse, which is
// asked while no VM can come to use it, says that it is used. It reports
// whether it has.
func (s *Setup) Remove(ctx context.Context, p Part, inUse func() (bool, error)) (bool, error) {
	wait, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	unlock, err := s.lock(wait) // sweeps leftovers
	if err != nil {
		return false, err
	}
	defer unlock()
	if p.Kind == PartLeftover {
		return true, nil
	}
	l := flock.New(s.layout.UseLock(), flock.SetPermissions(0o600))
	if _, err := l.TryLockContext(wait, lockPoll); err != nil {
		return false, fmt.Errorf("wait for VMs that are about to start: %w", err)
	}
	defer func() { _ = l.Close() }()
	now, err := s.Parts()
	if err != nil {
		return false, err
	}
	for _, n := range now {
		if n.Path != p.Path {
			continue
		}
		if n.Current {
			return false, nil
		}
		if used, err := inUse(); err != nil || used {
			return false, err
		}
		trash := filepath.Join(filepath.Dir(p.Path), workPrefix+"trash-"+p.ID)
		if err := errors.Join(os.Rename(p.Path, trash), os.RemoveAll(trash)); err != nil {
			return false, fmt.Errorf("remove %s %s: %w", p.Kind, p.ID, err)
		}
		return true, nil
	}
	return false, nil // somebody else has removed it
}
