package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/fcvm/fcvm/internal/setup/initramfs"
	"github.com/fcvm/fcvm/internal/setup/kmod"
)

// labModules makes a machine a host of VMs: its own devices, KVM, and what
// fcvm's networks and disks need.
var labModules = []string{
	"virtio_pci", "virtio_blk", "virtio_console", "virtio_rng", "overlay",
	"irqbypass", "kvm", "kvm_amd",
	"af_packet", "tun", "fuse", "loop", "bridge", "veth",
	"nf_tables", "nf_conntrack", "nf_nat", "nft_chain_nat", "nft_masq", "nft_ct",
	"nft_nat", "nft_reject_inet", "nft_fib_inet", "nft_redir", "br_netfilter",
}

const (
	moduleList    = "list" // in load order
	kernelVersion = "1"    // of how it is made
)

var imagePackage = regexp.MustCompile(`^linux-image-\d[^=]*`)

// labKernel returns a kernel and a directory of modules, from the
// distribution's package.
func labKernel(ctx context.Context, c *cache) (kernel, modules string, err error) {
	version := strings.Join(append([]string{kernelVersion}, labModules...), " ")
	dir, err := c.get("kernel", version, func(dir string) error { return fetchKernel(ctx, dir) })
	return filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "modules"), err
}

func fetchKernel(ctx context.Context, dir string) error {
	work, err := os.MkdirTemp(dir, "apt-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	a, err := privateApt(ctx, work, false)
	if err != nil {
		return err
	}
	packages, err := a.plan(ctx, "linux-image-cloud-amd64/"+a.suite)
	if err != nil {
		return err
	}
	root := filepath.Join(work, "root")
	for _, p := range packages {
		if imagePackage.MatchString(p) {
			if err := a.unpack(ctx, root, []string{p}); err != nil {
				return err
			}
		}
	}
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("packages %s hold %d kernels", strings.Join(packages, " "), len(images))
	}
	if err := os.Rename(images[0], filepath.Join(dir, "vmlinuz")); err != nil {
		return err
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	return writeModules(filepath.Join(dir, "modules"), filepath.Join(root, "lib", "modules", release))
}

func writeModules(dir, tree string) error {
	t, err := kmod.Open(os.DirFS(tree))
	if err != nil {
		return err
	}
	// What is missing is built in under another name, or shows where it is
	// used: the guest says it when there is no KVM.
	mods, _, err := t.Resolve(labModules)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	var list strings.Builder
	for _, m := range mods {
		fmt.Fprintf(&list, "%s.ko\n", m.Name)
		if err := os.WriteFile(filepath.Join(dir, m.Name+".ko"), m.Data, 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, moduleList), []byte(list.String()), 0o644)
}

// writeInitrd writes the initramfs with init as its first process.
func writeInitrd(path, init, modules string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := initramfs.NewWriter(f)
	for _, d := range []string{"dev", "proc", "sys", "lib", "lib/modules"} {
		if err := w.Dir(d, 0o755); err != nil {
			return err
		}
	}
	if err := w.Char("dev/console", 0o600, 5, 1); err != nil {
		return err
	}
	files := [][2]string{{"init", init}}
	entries, err := os.ReadDir(modules)
	if err != nil {
		return err
	}
	for _, e := range entries {
		files = append(files, [2]string{"lib/modules/" + e.Name(), filepath.Join(modules, e.Name())})
	}
	for _, f := range files {
		b, err := os.ReadFile(f[1])
		if err != nil {
			return err
		}
		if err := w.File(f[0], 0o755, b); err != nil {
			return err
		}
	}
	return w.Close()
}
