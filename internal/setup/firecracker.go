package setup

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/fcvm/fcvm/internal/progress"
)

// firecrackerVersion is the release that fcvm is tested with.
const firecrackerVersion = "v1.16.1"

// firecrackerReleases is where upstream publishes; below it lie
// VERSION/firecracker-VERSION-ARCH.tgz and the same with .sha256.txt.
const firecrackerReleases = "https://github.com/firecracker-microvm/firecracker/releases/download"

// Limits of a release.
const (
	maxFirecrackerArchive = 128 << 20
	maxFirecrackerStream  = 1 << 30 // decompressed: debug symbols come along
	maxFirecrackerProgram = 128 << 20
	maxChecksumFile       = 4 << 10
	versionTimeout        = 20 * time.Second
)

const firecrackerName = "firecracker"

// firecrackerArch is how upstream calls an architecture, and the published
// SHA-256 of the archive of firecrackerVersion.
type firecrackerArch struct {
	name    string
	machine elf.Machine
	sum     string
}

func firecrackerFor(arch string) (firecrackerArch, error) {
	switch arch {
	case "amd64":
		return firecrackerArch{"x86_64", elf.EM_X86_64, "382a02a869e4d6d5cb14c40577f9545e8458021ea8b0b2d3fc10ec14d9c242e6"}, nil
	case "arm64":
		return firecrackerArch{"aarch64", elf.EM_AARCH64, "8d0e69f6d6f9a1724551f607f18504052c16c1828ee3d4d7b6e6c73380871e0e"}, nil
	default:
		return firecrackerArch{}, fmt.Errorf("%w: there is no Firecracker for %s", ErrInput, arch)
	}
}

// FirecrackerOptions says which Firecracker to install. The zero value takes
// the release that fcvm is tested with.
type FirecrackerOptions struct {
	FromFile string // path of the program
	Version  string // "v1.16.1", with or without the v
	Mirror   string // URL in place of that of upstream's releases
	Force    bool   // install again what is there
}

var (
	versionForm     = regexp.MustCompile(`^v\d+\.\d+\.\d+$`)
	firecrackerSays = regexp.MustCompile(`^Firecracker (v\d+\.\d+\.\d+\S*)`)
)

const withoutFirecracker = "fcvm works without it, with QEMU; or get the program elsewhere and give it with: fcvm setup firecracker --from-file FILE"

// Firecracker installs the Firecracker program, unless what is asked for is
// there. A download is checked against the sum that this fcvm knows of its
// own version, and against the one that upstream publishes for others.
func (s *Setup) Firecracker(ctx context.Context, o FirecrackerOptions, rep progress.Reporter) error {
	arch, err := firecrackerFor(s.arch)
	if err != nil {
		return err
	}
	version := firecrackerVersion
	if o.Version != "" {
		version = "v" + strings.TrimPrefix(o.Version, "v")
		if !versionForm.MatchString(version) {
			return fmt.Errorf("%w: %q is no version of Firecracker; it is like %s", ErrInput, o.Version, firecrackerVersion)
		}
		if o.FromFile != "" {
			return fmt.Errorf("%w: --from-file takes the file as it is; leave out --version", ErrInput)
		}
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	m, err := s.Manifest()
	if err != nil {
		return err
	}
	if a := m.Firecracker; a != nil && !o.Force && o.FromFile == "" && (a.Version == version || o.Version == "") && s.whole(a) == nil {
		rep.Note("Firecracker " + a.Version + " is installed")
		return nil
	}
	work, err := workDir(s.layout.Bin())
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	source := o.FromFile
	if o.FromFile == "" {
		base := s.firecrackerURL
		if o.Mirror != "" {
			base = strings.TrimSuffix(o.Mirror, "/")
		}
		source, err = downloadFirecracker(ctx, arch, version, base, work, rep)
		if err != nil {
			return fmt.Errorf("get Firecracker %s: %w; %s", version, err, withoutFirecracker)
		}
	} else if err := copyFirecracker(o.FromFile, filepath.Join(work, "final")); err != nil {
		return err
	}
	return s.installFirecracker(ctx, filepath.Join(work, "final"), source, arch)
}

// downloadFirecracker puts the program of a release into work/final and
// returns where it came from.
func downloadFirecracker(ctx context.Context, arch firecrackerArch, version, base, work string, rep progress.Reporter) (string, error) {
	name := fmt.Sprintf("firecracker-%s-%s", version, arch.name)
	url := fmt.Sprintf("%s/%s/%s.tgz", base, version, name)
	sum := arch.sum
	if version != firecrackerVersion {
		var err error
		if sum, err = publishedSum(ctx, url+".sha256.txt"); err != nil {
			return "", err
		}
	}
	archive := filepath.Join(work, "archive")
	if err := download(ctx, url, archive, sum, maxFirecrackerArchive, rep); err != nil {
		return "", err
	}
	if err := extractFirecracker(archive, name, filepath.Join(work, "final")); err != nil {
		return "", fmt.Errorf("unpack %s: %w", url, err)
	}
	return url, nil
}

// publishedSum reads a file as sha256sum writes it: the sum, then a name.
func publishedSum(ctx context.Context, url string) (sum string, err error) {
	err = get(ctx, url, func(body io.Reader, _ int64) error {
		b, err := io.ReadAll(io.LimitReader(body, maxChecksumFile))
		if err != nil {
			return err
		}
		sum, _, _ = strings.Cut(strings.TrimSpace(string(b)), " ")
		if raw, err := hex.DecodeString(sum); err != nil || len(raw) != 32 {
			return fmt.Errorf("%w %s: it holds no SHA-256", ErrDownload, url)
		}
		return nil
	})
	return sum, err
}

// extractFirecracker takes the one program out of a release, and nothing else.
func extractFirecracker(archive, name, dir string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInput, err)
	}
	t := tar.NewReader(io.LimitReader(z, maxFirecrackerStream))
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: there is no %s in it", ErrInput, name)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrInput, err)
		}
		if h.Typeflag == tar.TypeReg && path.Base(h.Name) == name {
			return writeProgram(t, dir)
		}
	}
}

func copyFirecracker(file, dir string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInput, err)
	}
	defer func() { _ = f.Close() }()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return fmt.Errorf("%w: %s is no regular file", ErrInput, file)
	}
	return writeProgram(f, dir)
}

func writeProgram(r io.Reader, dir string) error {
	b, err := io.ReadAll(io.LimitReader(r, maxFirecrackerProgram+1))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInput, err)
	}
	if len(b) > maxFirecrackerProgram {
		return fmt.Errorf("%w: the program is larger than %d MiB", ErrInput, maxFirecrackerProgram>>20)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, firecrackerName), b, 0o500)
}

// installFirecracker checks the program in dir, moves it to its place and
// records it.
func (s *Setup) installFirecracker(ctx context.Context, dir, source string, arch firecrackerArch) error {
	program := filepath.Join(dir, firecrackerName)
	b, err := os.ReadFile(program)
	if err != nil {
		return fmt.Errorf("install Firecracker: %w", err)
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return fmt.Errorf("%w: %s is no program: %w", ErrInput, source, err)
	}
	if f.Machine != arch.machine || (f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN) {
		return fmt.Errorf("%w: %s is no program for %s, but %s of %s", ErrInput, source, arch.name, f.Type, f.Machine)
	}
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	out, err := command(ctx, "/", program, "--version")
	if err != nil {
		return fmt.Errorf("%w: %s does not run: %w", ErrInput, source, err)
	}
	match := firecrackerSays.FindSubmatch(out)
	if match == nil {
		return fmt.Errorf("%w: %s is no Firecracker: asked for its version it says %.60q", ErrInput, source, out)
	}
	sum, _, _, err := hashFile(program)
	if err != nil {
		return fmt.Errorf("install Firecracker: %w", err)
	}
	a := &Artifact{ID: sum[:idLength], Version: string(match[1]), Source: source, Installed: time.Now().UTC()}
	final := filepath.Join(s.layout.Bin(), a.ID)
	is := func(dir string) bool { return isFile(filepath.Join(dir, firecrackerName), a.ID) }
	if err := s.place(ctx, dir, final, is); err != nil {
		return err
	}
	return s.record(a, []string{filepath.Join(final, firecrackerName)}, func(m *Manifest) { m.Firecracker = a })
}
