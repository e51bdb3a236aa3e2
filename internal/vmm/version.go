package vmm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/fcvm/fcvm/internal/atomicfile"
)

const (
	versionTimeout = 10 * time.Second
	maxVersionText = 4 << 10 // bytes of what a program says
	maxVersions    = 16      // programs that are remembered
)

// Versions remembers what programs say to --version, in a file: starting a
// process takes longer than all else that is done before a VMM is started. A
// program is known by its path, size, inode and times. A Versions without a file
// remembers nothing.
type Versions struct{ path string }

// NewVersions returns what is remembered in the file at path, which need not
// exist; empty: nothing is.
func NewVersions(path string) *Versions { return &Versions{path} }

// Of returns what a program writes to stdout when it is asked for its version,
// maxVersionText bytes at most.
func (v *Versions) Of(ctx context.Context, program string) (string, error) {
	key, err := identity(program)
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", program, err)
	}
	known := v.read()
	if text, ok := known[key]; ok {
		return text, nil
	}
	text, err := askVersion(ctx, program)
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", program, err)
	}
	if len(known) >= maxVersions {
		known = map[string]string{}
	}
	known[key] = text
	v.write(known)
	return text, nil
}

func askVersion(ctx context.Context, program string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "--version")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	return string(out[:min(len(out), maxVersionText)]), err
}

// identity is another one when the program is.
func identity(path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return "", errors.ErrUnsupported
	}
	return fmt.Sprintf("%s %d %d:%d %d %d", path, st.Size(), sys.Dev, sys.Ino, st.ModTime().UnixNano(), sys.Ctim.Nano()), nil
}

// read returns what is remembered; what cannot be read is as good as nothing.
func (v *Versions) read() map[string]string {
	known := map[string]string{}
	if v == nil || v.path == "" {
		return known
	}
	f, err := os.Open(v.path)
	if err != nil {
		return known
	}
	defer func() { _ = f.Close() }()
	if json.NewDecoder(io.LimitReader(f, 2*maxVersions*maxVersionText)).Decode(&known) != nil {
		return map[string]string{}
	}
	return known
}

// write is in vain where nothing can be written.
func (v *Versions) write(known map[string]string) {
	if v == nil || v.path == "" {
		return
	}
	if b, err := json.MarshalIndent(known, "", "  "); err == nil {
		_ = atomicfile.Write(v.path, append(b, '\n'), 0o600)
	}
}
