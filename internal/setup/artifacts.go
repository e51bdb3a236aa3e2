package setup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/fcvm/fcvm/internal/atomicfile"
	"github.com/fcvm/fcvm/internal/setup/initramfs"
)

// Artifacts is what a VM starts from.
type Artifacts struct {
	Kernel        string // path
	KernelID      string
	KernelVersion string
	Initrd        string // path; holds this fcvm's agent
	Root          string // path
	RootID        string
	Firecracker   string // path; empty when setup has not installed it
}

// Artifacts returns what is installed. An error that wraps ErrNotSetUp names
// what is missing and the command that gets it.
func (s *Setup) Artifacts(ctx context.Context) (*Artifacts, error) {
	m, err := s.Manifest()
	if err != nil {
		return nil, err
	}
	var missing []string
	for _, part := range []struct {
		name string
		a    *Artifact
	}{{"kernel", m.Kernel}, {"guest root", m.Rootfs}} {
		if part.a == nil {
			missing = append(missing, "no "+part.name)
		} else if err := s.whole(part.a); err != nil {
			missing = append(missing, fmt.Sprintf("the %s is damaged (%v)", part.name, err))
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("%w: %s in %s; run: fcvm setup", ErrNotSetUp, strings.Join(missing, " and "), s.layout.Data)
	}
	kernelDir := filepath.Join(s.layout.Kernels(), m.Kernel.ID)
	initrd, err := s.initramfs(ctx, kernelDir)
	if err != nil {
		return nil, err
	}
	a := &Artifacts{
		Kernel: filepath.Join(kernelDir, kernelFileName), KernelID: m.Kernel.ID, KernelVersion: m.Kernel.Version, Initrd: initrd,
		Root: filepath.Join(s.layout.Roots(), m.Rootfs.ID, rootFileName), RootID: m.Rootfs.ID,
	}
	if m.Firecracker != nil && s.whole(m.Firecracker) == nil {
		a.Firecracker = filepath.Join(s.layout.Data, m.Firecracker.Files[0].Path)
	}
	return a, nil
}

// initramfs returns the archive that holds the kernel's modules and this
// fcvm's agent, and makes it when the agent is a new one. Making it twice at
// the same time does no harm: the last one wins, and both are the same.
func (s *Setup) initramfs(ctx context.Context, kernelDir string) (string, error) {
	agent, err := s.findAgent()
	if err != nil {
		return "", err
	}
	// Size and time tell agents apart as well as a hash, without reading one
	// at every start.
	st, err := os.Stat(agent)
	if err != nil {
		return "", fmt.Errorf("read the agent: %w", err)
	}
	path := filepath.Join(kernelDir, fmt.Sprintf("initramfs-%x-%x.cpio", st.Size(), st.ModTime().UnixNano()))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := buildInitramfs(path, agent, filepath.Join(kernelDir, modulesDirName)); err != nil {
		return "", fmt.Errorf("build the initramfs: %w", err)
	}
	return path, sweepInitramfs(kernelDir, path)
}

// sweepInitramfs drops archives of agents that are gone. One that a VM has
// open stays readable to it; a VM directory links to the file itself.
func sweepInitramfs(kernelDir, keep string) error {
	old, err := filepath.Glob(filepath.Join(kernelDir, "initramfs-*.cpio"))
	if err != nil {
		return err
	}
	for _, p := range old {
		if p == keep {
			continue
		}
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("sweep old initramfs: %w", err)
		}
	}
	return nil
}

func buildInitramfs(path, agent, modules string) error {
	out, err := atomicfile.Create(path, 0o400)
	if err != nil {
		return err
	}
	defer out.Discard()
	w := initramfs.NewWriter(out)
	for _, d := range []string{"dev", "proc", "sys", "run", "lib", "lib/modules", "lower", "newroot"} {
		if err := w.Dir(d, 0o755); err != nil {
			return err
		}
	}
	// The kernel opens /dev/console for /init before /init can mount /dev.
	if err := w.Char("dev/console", 0o600, 5, 1); err != nil {
		return err
	}
	b, err := os.ReadFile(agent)
	if err != nil {
		return err
	}
	if err := w.File("init", 0o755, b); err != nil {
		return err
	}
	entries, err := os.ReadDir(modules)
	if err != nil {
		return err
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(modules, e.Name()))
		if err != nil {
			return err
		}
		if err := w.File("lib/modules/"+e.Name(), 0o644, b); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return out.Commit()
}
