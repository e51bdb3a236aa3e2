package setup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	outsideFile   = "outside" // in a work directory: names the one outside
	outsidePrefix = "fcvm-setup-"
)

// outsideDir makes a directory that belongs to a work directory, and lies
// outside of the data directory: mmdebstrap, run by an ordinary user, works as
// the users of a namespace, who cannot go where only that user can.
func outsideDir(work string) (string, error) {
	dir, err := os.MkdirTemp("", outsidePrefix)
	if err != nil {
		return "", err
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(filepath.Join(work, outsideFile), []byte(dir), 0o600)); err != nil {
		return "", errors.Join(err, os.Remove(dir))
	}
	return dir, nil
}

// sweep removes a work directory. Of one whose builder has outlived its setup,
// and still works outside, the record stays for the next sweep.
func sweep(ctx context.Context, work string) error {
	if removeOutside(ctx, work) == nil {
		return os.RemoveAll(work)
	}
	entries, err := os.ReadDir(work)
	for _, e := range entries {
		if e.Name() != outsideFile {
			err = errors.Join(err, os.RemoveAll(filepath.Join(work, e.Name())))
		}
	}
	return err
}

// removeOutside removes the directory outside that belongs to work, if there is
// one. Files of the namespace's users have to be removed by them.
func removeOutside(ctx context.Context, work string) error {
	b, err := os.ReadFile(filepath.Join(work, outsideFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	dir := string(b)
	if !filepath.IsAbs(dir) || !strings.HasPrefix(filepath.Base(dir), outsidePrefix) {
		return nil // nothing of ours
	}
	err = os.RemoveAll(dir)
	if err == nil {
		return nil
	}
	mmdebstrap := findProgram("mmdebstrap")
	if mmdebstrap == "" {
		return err
	}
	cmd := newCommand(ctx, "/", mmdebstrap, "--unshare-helper", "find", dir, "-mindepth", "2", "-delete")
	cmd.Env = append(cmd.Env, "PATH="+builderPath)
	if out, err := cmd.CombinedOutput(); err != nil {
		return errors.Join(&commandError{mmdebstrap, err}, errors.New(strings.TrimSpace(string(out))))
	}
	return os.RemoveAll(dir)
}
