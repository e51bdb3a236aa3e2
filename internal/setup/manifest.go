package setup

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/fcvm/fcvm/internal/atomicfile"
)

// manifestSchema is the version of Manifest's form on disk.
const manifestSchema = 1

// maxManifest bounds what is read of it, bytes.
const maxManifest = 1 << 20

// Manifest is what setup has installed; it lies in setup.json.
type Manifest struct {
	Schema      int       `json:"schema"`
	Kernel      *Artifact `json:"kernel,omitempty"`
	Rootfs      *Artifact `json:"rootfs,omitempty"`
	Firecracker *Artifact `json:"firecracker,omitempty"`
}

// Artifact is one installed thing.
type Artifact struct {
	ID        string    `json:"id"`               // names its directory
	Version   string    `json:"version"`          // of the kernel, the distribution, the VMM
	Source    string    `json:"source"`           // where it comes from, for people
	Format    int       `json:"format,omitempty"` // rootFormat or kernelFormat
	Installed time.Time `json:"installed"`
	Files     []File    `json:"files"`
}

// File is one file of an artifact.
type File struct {
	Path   string    `json:"path"` // relative to the data directory
	SHA256 string    `json:"sha256"`
	Size   int64     `json:"size"`
	MTime  time.Time `json:"mtime"`
}

// readManifest returns an empty manifest where there is none.
func readManifest(path string) (*Manifest, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &Manifest{Schema: manifestSchema}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	defer func() { _ = f.Close() }()
	m := new(Manifest)
	if err := json.NewDecoder(io.LimitReader(f, maxManifest)).Decode(m); err != nil {
		return nil, fmt.Errorf("%w: %s: %w; move it away and run: fcvm setup", ErrManifest, path, err)
	}
	if m.Schema != manifestSchema {
		return nil, fmt.Errorf("%w: %s has schema %d, this fcvm knows %d", ErrManifest, path, m.Schema, manifestSchema)
	}
	return m, nil
}

func (m *Manifest) write(path string) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := atomicfile.Write(path, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// hashFile describes a file that was just installed.
func hashFile(path string) (sum string, size int64, mtime time.Time, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, time.Time{}, err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if size, err = io.Copy(h, f); err != nil {
		return "", 0, time.Time{}, fmt.Errorf("read %s: %w", path, err)
	}
	st, err := f.Stat()
	if err != nil {
		return "", 0, time.Time{}, err
	}
	return hex.EncodeToString(h.Sum(nil)), size, st.ModTime().UTC(), nil
}
