package setup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/setup/bzimage"
	"github.com/fcvm/fcvm/internal/setup/kmod"
)

// maxKernelFile bounds a kernel file as it comes, bytes.
const maxKernelFile = 512 << 20

// kernelFormat is the version of the lists of modules. With an older one,
// connections of a snapshot's original cannot be reset (1: tcp_diag). A kernel
// from a package is then installed anew by `fcvm setup`.
const kernelFormat = 1

// Modules that a guest needs before it has a root, and those that can wait
// until the container runs. What a kernel has built in is left out.
var (
	bootModules = []string{
		"virtio_pci", "virtio_mmio", "virtio_blk", "virtio_console", "virtio_net", "vmw_vsock_virtio_transport",
		"ext4", "overlay", "virtio_rng", "af_packet", "vmgenid",
	}
	extraModules = []string{
		"fuse", "virtio_balloon", "tcp_diag", "tun", "loop", "bridge", "veth", "nf_tables", "nft_chain_nat", "nft_masq", "nft_ct",
		"nft_compat", "nft_counter", "nft_fib_inet", "nft_reject_inet", "nf_conntrack", "nf_nat", "xt_conntrack",
		"xt_MASQUERADE", "xt_addrtype", "xt_comment", "xt_mark", "br_netfilter", "ip6_tables", "ip_tables",
	}
)

// KernelOptions says where the kernel comes from. The zero value takes the
// distribution's package.
type KernelOptions struct {
	From    string // "package" (default), "host", a file's path, or an http(s) URL
	SHA256  string // of the file, or of what the URL gives; required with a URL
	Modules string // directory like /lib/modules/VERSION, for a file or URL; empty: all is built in
	Package string // the package's name; empty: the distribution's kernel for clouds. For a package only
	Force   bool   // install again what is there
}

// check refuses what would be ignored.
func (o KernelOptions) check() error {
	packaged, hosts := o.From == "" || o.From == "package", o.From == "host"
	switch {
	case o.Package != "" && !packaged:
		return fmt.Errorf("%w: --package is for the distribution's kernel; leave it out, or --from %s", ErrInput, o.From)
	case o.Modules != "" && packaged:
		return fmt.Errorf("%w: a package has its own modules; leave out --modules, or give a kernel with --from FILE", ErrInput)
	case o.Modules != "" && hosts:
		return fmt.Errorf("%w: the host's kernel comes with the host's modules; leave out --modules", ErrInput)
	case o.SHA256 != "" && packaged:
		return fmt.Errorf("%w: apt checks what it downloads; leave out --sha256, or give a kernel with --from FILE or --from URL", ErrInput)
	case o.SHA256 != "" && hosts:
		return fmt.Errorf("%w: --sha256 is for a file or a URL; leave it out with --from host", ErrInput)
	}
	return nil
}

// met reports whether the kernel that is installed is the one asked for.
func (o KernelOptions) met(a *Artifact) bool {
	return a != nil && !o.Force && o.From == "" && (o.Package == "" || o.Package == a.Source) && !outdated(a)
}

// kernelSource is a kernel as it was found.
type kernelSource struct {
	image   []byte // bzImage, ELF or arm64 Image
	modules fs.FS  // nil: none
	version string
	source  string
}

// Kernel installs a kernel that both VMMs boot, and the modules for the
// initramfs.
func (s *Setup) Kernel(ctx context.Context, o KernelOptions, rep progress.Reporter) error {
	if err := o.check(); err != nil {
		return err
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if m, err := s.Manifest(); err != nil {
		return err
	} else if o.met(m.Kernel) && s.whole(m.Kernel) == nil {
		rep.Note("kernel " + m.Kernel.Version + " is installed")
		return nil
	}
	work, err := workDir(s.layout.Kernels())
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()

	src, err := s.kernelSource(ctx, o, work, rep)
	if err != nil {
		return err
	}
	task := rep.Task("unpack kernel "+src.version, 0)
	err = s.installKernel(ctx, work, src)
	task.Done(err)
	return err
}

// outdated reports whether an installed kernel lacks modules that one from the
// package would have now. A person's own kernel is never replaced.
func outdated(a *Artifact) bool {
	own := strings.Contains(a.Source, "/") // a path or a URL
	return !own && a.Format < kernelFormat
}

func (s *Setup) kernelSource(ctx context.Context, o KernelOptions, work string, rep progress.Reporter) (*kernelSource, error) {
	switch {
	case o.From == "" || o.From == "package":
		return s.kernelPackage(ctx, o.Package, work, rep)
	case o.From == "host":
		var uts unix.Utsname
		if err := unix.Uname(&uts); err != nil {
			return nil, fmt.Errorf("find the host's kernel: %w", err)
		}
		return kernelOfHost("/", unix.ByteSliceToString(uts.Release[:]))
	case strings.HasPrefix(o.From, "http://"), strings.HasPrefix(o.From, "https://"):
		path := filepath.Join(work, "download")
		if o.SHA256 == "" {
			return nil, fmt.Errorf("%w: a kernel from a URL needs its checksum; give --sha256", ErrInput)
		}
		if err := download(ctx, o.From, path, o.SHA256, maxKernelFile, rep); err != nil {
			return nil, err
		}
		return kernelFile(path, o.Modules, o.From)
	default:
		src, err := kernelFile(o.From, o.Modules, o.From)
		if err != nil || o.SHA256 == "" {
			return src, err
		}
		sum := sha256.Sum256(src.image)
		if got := hex.EncodeToString(sum[:]); !strings.EqualFold(got, o.SHA256) {
			return nil, fmt.Errorf("%w: %s has SHA-256 %s, it should be %s", ErrChecksum, o.From, got, o.SHA256)
		}
		return src, nil
	}
}

func kernelFile(path, modules, source string) (*kernelSource, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInput, err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxKernelFile+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInput, err)
	}
	if len(b) > maxKernelFile {
		return nil, fmt.Errorf("%w: %s is larger than %d MiB", ErrInput, path, maxKernelFile>>20)
	}
	src := &kernelSource{image: b, source: source, version: filepath.Base(source)}
	if modules != "" {
		src.modules = os.DirFS(modules)
	}
	return src, nil
}

// bootable returns the kernel in the form that both VMMs boot: an ELF file on
// x86_64, an Image on arm64.
func bootable(b []byte, arch string) ([]byte, error) {
	if bytes.HasPrefix(b, []byte{0x1f, 0x8b}) { // arm64 distributions ship Image.gz
		r, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, fmt.Errorf("%w: kernel: %w", ErrInput, err)
		}
		if b, err = io.ReadAll(io.LimitReader(r, bzimage.MaxKernel+1)); err != nil {
			return nil, fmt.Errorf("%w: kernel: %w", ErrInput, err)
		}
		if len(b) > bzimage.MaxKernel {
			return nil, fmt.Errorf("%w: kernel: %w", ErrInput, bzimage.ErrTooLarge)
		}
	}
	switch arch {
	case "amd64":
		if bzimage.Is(b) {
			return bzimage.Extract(b)
		}
		f, err := elf.NewFile(bytes.NewReader(b))
		if err != nil || f.Machine != elf.EM_X86_64 {
			return nil, fmt.Errorf("%w: kernel is neither a bzImage nor an x86_64 ELF file", ErrInput)
		}
		return b, nil
	default:
		const magic, offset = "ARM\x64", 56 // https://docs.kernel.org/arch/arm64/booting.html
		if len(b) < offset+len(magic) || string(b[offset:offset+len(magic)]) != magic {
			return nil, fmt.Errorf("%w: kernel is not an arm64 Image", ErrInput)
		}
		return b, nil
	}
}

func (s *Setup) installKernel(ctx context.Context, work string, src *kernelSource) error {
	image, err := bootable(src.image, s.arch)
	if err != nil {
		return fmt.Errorf("kernel from %s: %w", src.source, err)
	}
	if err := os.WriteFile(filepath.Join(work, kernelFileName), image, 0o400); err != nil {
		return fmt.Errorf("install kernel: %w", err)
	}
	if err := writeModules(filepath.Join(work, modulesDirName), src.modules); err != nil {
		return fmt.Errorf("install kernel %s: %w", src.version, err)
	}
	for _, extra := range []string{"download", "package"} {
		if err := os.RemoveAll(filepath.Join(work, extra)); err != nil {
			return fmt.Errorf("install kernel: %w", err)
		}
	}
	id, err := kernelID(work)
	if err != nil {
		return fmt.Errorf("install kernel: %w", err)
	}
	final := filepath.Join(s.layout.Kernels(), id)
	if err := s.place(ctx, work, final, func(dir string) bool { return isKernel(dir, id) }); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(final, modulesDirName, "*"))
	if err != nil {
		return err
	}
	a := &Artifact{ID: id, Version: src.version, Source: src.source, Format: kernelFormat, Installed: time.Now().UTC()}
	return s.record(a, append(files, filepath.Join(final, kernelFileName)), func(m *Manifest) { m.Kernel = a })
}

// writeModules puts the modules that a guest needs into one flat directory,
// with two lists in load order.
func writeModules(dir string, tree fs.FS) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	var boot, extra []*kmod.Module
	if tree != nil {
		t, err := kmod.Open(tree)
		if err != nil {
			return err
		}
		if boot, _, err = t.Resolve(bootModules); err != nil {
			return err
		}
		if extra, _, err = t.Resolve(extraModules); err != nil {
			return err
		}
	}
	have := map[string]bool{}
	for _, l := range []struct {
		name string
		mods []*kmod.Module
	}{{bootListName, boot}, {extraListName, extra}} {
		var list strings.Builder
		for _, m := range l.mods {
			if have[m.Name] {
				continue
			}
			have[m.Name] = true
			fmt.Fprintf(&list, "%s.ko\n", m.Name)
			if err := os.WriteFile(filepath.Join(dir, m.Name+".ko"), m.Data, 0o400); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, l.name), []byte(list.String()), 0o400); err != nil {
			return err
		}
	}
	return nil
}
