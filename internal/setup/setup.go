// Package setup installs what a VM needs on the host besides fcvm itself: a
// kernel with its modules, the guest root, and, where it can be had, the
// Firecracker program. Each step works in a directory of its own beside the
// final place and is renamed into it whole; a step that is interrupted leaves
// a directory that the next one sweeps away. What was installed, from where
// and with which checksums is recorded in setup.json.
//
// Nothing here needs root. The commands that build the guest root are the
// distribution's own (mmdebstrap); everything else is done in Go.
package setup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/gofrs/flock"

	"github.com/fcvm/fcvm/internal/paths"
)

// Sentinel errors of setup.
var (
	// ErrNotSetUp: something that a VM needs is not installed; the message
	// names it and the command that installs it.
	ErrNotSetUp = errors.New("fcvm is not set up")
	// ErrManifest: setup.json cannot be used.
	ErrManifest = errors.New("setup manifest is broken")
	// ErrTool: the host lacks a program, or an ability; the message says how to
	// get it.
	ErrTool = errors.New("the host lacks what this needs")
	// ErrChecksum: a download is not what it should be.
	ErrChecksum = errors.New("checksum does not match")
	// ErrDownload: something could not be fetched.
	ErrDownload = errors.New("cannot download")
	// ErrInput: a file that the user named cannot be used.
	ErrInput = errors.New("cannot use file")
)

// workPrefix marks directories in which a step works.
const workPrefix = ".work-"

// Setup installs into one data directory. It is safe for concurrent use by
// several processes: steps take turns.
type Setup struct {
	layout paths.Layout
	arch   string // as Go names it
	agent  string // path of fc-agent; empty: looked for beside this program

	firecrackerURL string // where its releases are
}

// New returns the setup of a data directory, for the architecture arch
// (runtime.GOARCH). agent names the fc-agent program; empty, it is looked for
// at $FCVM_AGENT, beside this program and in ../libexec/fcvm.
func New(layout paths.Layout, arch, agent string) *Setup {
	return &Setup{layout: layout, arch: arch, agent: agent, firecrackerURL: firecrackerReleases}
}

// lock makes steps take turns and sweeps what an interrupted one has left.
func (s *Setup) lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(s.layout.Data, 0o700); err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	l := flock.New(s.layout.SetupLock(), flock.SetPermissions(0o600))
	if _, err := l.TryLockContext(ctx, lockPoll); err != nil {
		return nil, fmt.Errorf("wait for another setup to finish: %w", err)
	}
	for _, dir := range []string{s.layout.Kernels(), s.layout.Roots(), s.layout.Bin()} {
		left, err := filepath.Glob(filepath.Join(dir, workPrefix+"*"))
		if err != nil {
			return nil, err
		}
		for _, p := range left {
			if err := sweep(ctx, p); err != nil {
				_ = l.Close()
				return nil, fmt.Errorf("sweep an interrupted setup: %w", err)
			}
		}
	}
	return func() { _ = l.Close() }, nil
}

// workDir makes a directory below parent in which a step works.
func workDir(parent string) (string, error) {
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return "", fmt.Errorf("open data directory: %w", err)
	}
	return os.MkdirTemp(parent, workPrefix)
}

// record hashes the artifact's files and writes it into the manifest.
func (s *Setup) record(a *Artifact, files []string, set func(*Manifest)) error {
	for _, p := range files {
		sum, size, mtime, err := hashFile(p)
		if err != nil {
			return fmt.Errorf("record %s: %w", p, err)
		}
		rel, err := filepath.Rel(s.layout.Data, p)
		if err != nil {
			return err
		}
		a.Files = append(a.Files, File{Path: rel, SHA256: sum, Size: size, MTime: mtime})
	}
	m, err := readManifest(s.layout.Setup())
	if err != nil {
		return err
	}
	set(m)
	return m.write(s.layout.Setup())
}

// whole reports what is wrong with an artifact, going by size and time of its
// files.
func (s *Setup) whole(a *Artifact) error {
	for _, f := range a.Files {
		if !filepath.IsLocal(f.Path) {
			return fmt.Errorf("%w: path %q", ErrManifest, f.Path)
		}
		st, err := os.Stat(filepath.Join(s.layout.Data, f.Path))
		if err != nil {
			return err
		}
		if st.Size() != f.Size || !st.ModTime().Equal(f.MTime) {
			return fmt.Errorf("%s has changed since it was installed", filepath.Join(s.layout.Data, f.Path))
		}
	}
	return nil
}

// Manifest returns what is installed.
func (s *Setup) Manifest() (*Manifest, error) { return readManifest(s.layout.Setup()) }

// findAgent returns the path of the guest's program.
func (s *Setup) findAgent() (string, error) {
	candidates := []string{s.agent, os.Getenv("FCVM_AGENT")}
	if exe, err := os.Executable(); err == nil {
		dir := filepath.Dir(exe)
		candidates = append(candidates, filepath.Join(dir, "fc-agent"), filepath.Join(dir, "..", "libexec", "fcvm", "fc-agent"))
	}
	var tried []string
	for _, c := range candidates {
		if c == "" {
			continue
		}
		if st, err := os.Stat(c); err == nil && st.Mode().IsRegular() {
			return c, nil
		}
		tried = append(tried, c)
	}
	return "", fmt.Errorf("%w: fc-agent, the guest's side of fcvm, is not at %s; install it there or set FCVM_AGENT", ErrNotSetUp, strings.Join(tried, " nor at "))
}
