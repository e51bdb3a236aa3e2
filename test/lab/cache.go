package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
)

// cache is a directory of things that are made once. It is locked while open.
type cache struct{ dir string }

func openCache(ctx context.Context, dir string) (*cache, func(), error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, nil, fmt.Errorf("open the cache: %w", err)
	}
	l := flock.New(filepath.Join(dir, "lock"))
	if _, err := l.TryLockContext(ctx, 100*time.Millisecond); err != nil {
		return nil, nil, fmt.Errorf("wait for another lab to prepare: %w", err)
	}
	return &cache{dir}, func() { _ = l.Close() }, nil
}

// get returns the directory that make has once filled. version tells apart
// what would be made differently.
func (c *cache) get(what, version string, fill func(dir string) error) (string, error) {
	sum := sha256.Sum256([]byte(version))
	final := filepath.Join(c.dir, fmt.Sprintf("%s-%x", what, sum[:6]))
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	work := final + ".work"
	if err := os.RemoveAll(work); err != nil { // of a run that was interrupted
		return "", err
	}
	if err := os.MkdirAll(work, 0o755); err != nil {
		return "", err
	}
	fmt.Fprintf(os.Stderr, "lab: making %s, once\n", final)
	if err := fill(work); err != nil {
		return "", errors.Join(fmt.Errorf("make the lab's %s: %w", what, err), os.RemoveAll(work))
	}
	return final, os.Rename(work, final)
}

// command makes a command that is asked to end with its children when ctx
// does, and whose stderr is kept for its error.
func command(ctx context.Context, dir, name string, args ...string) (*exec.Cmd, func(error) error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	return cmd, func(err error) error {
		if err == nil {
			return nil
		}
		return fmt.Errorf("%s: %w\n%s", filepath.Base(name), err, strings.TrimSpace(stderr.String()))
	}
}

// output runs a command and returns what it writes to stdout.
func output(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd, explain := command(ctx, dir, name, args...)
	b, err := cmd.Output()
	return b, explain(err)
}
