package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/setup/initramfs"
	"github.com/fcvm/fcvm/test/images"
)

// firstOutput is what both sides' containers print.
const firstOutput = "first output"

// BenchmarkFirstOutput measures the time from the command to the container's
// first output, of a VM that boots, beside the same kernel, guest root, image and `podman run`
// started by hand with QEMU alone. The two take turns; the ratio is that of
// the medians.
func BenchmarkFirstOutput(b *testing.B) {
	if env.driver != "qemu" {
		b.Skip("the baseline is QEMU's")
	}
	hand := newByHand(b)
	var ours, theirs []time.Duration
	for b.Loop() {
		theirs = append(theirs, hand.firstOutput(b))
		ours = append(ours, fcvmFirstOutput(b))
	}
	fcvm, baseline := median(ours), median(theirs)
	b.ReportMetric(fcvm.Seconds(), "fcvm-s")
	b.ReportMetric(baseline.Seconds(), "by-hand-s")
	b.ReportMetric(fcvm.Seconds()/baseline.Seconds(), "ratio")
	if limit := baseline * 6 / 5; fcvm > limit {
		b.Errorf("fcvm took %s; 1.2 times what it takes by hand are %s", fcvm, limit)
	}
	b.ReportMetric(0, "ns/op") // of both together: it says nothing
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func fcvmFirstOutput(b *testing.B) time.Duration {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), runTimeout)
	defer cancel()
	return timeToOutput(b, command(ctx, "run", "--vmm", "qemu", "--network", "none", "--no-cache", imageRef(b), "echo", firstOutput))
}

func imageRef(b *testing.B) string {
	b.Helper()
	path, err := images.OCIArchive(b.Context(), env.images, "busybox")
	if err != nil {
		b.Fatal(err)
	}
	return "oci-archive:" + path
}

// timeToOutput starts a command and waits for its first output, then for its end.
func timeToOutput(b *testing.B, cmd *exec.Cmd) time.Duration {
	b.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	start := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	var took time.Duration
	var all []byte
	buf := make([]byte, 4096)
	for {
		n, err := out.Read(buf)
		all = append(all, buf[:n]...)
		if took == 0 && bytes.Contains(all, []byte(firstOutput)) {
			took = time.Since(start)
		}
		if err != nil {
			break
		}
	}
	if err := cmd.Wait(); err != nil || took == 0 {
		b.Fatalf("%v; no output: %.2000q; stderr:\n%s", err, all, errs.String())
	}
	return took
}

// byHand is a VM as somebody would start it who has only QEMU: an initramfs
// with a shell that loads the modules, mounts the disks and calls Podman.
type byHand struct {
	dir                 string
	kernel, root, image string
	initramfs           string
	program             string
}

func newByHand(b *testing.B) *byHand {
	b.Helper()
	h := &byHand{dir: b.TempDir(), program: "qemu-system-x86_64"}
	if _, err := exec.LookPath(h.program); err != nil {
		b.Skip("there is no " + h.program)
	}
	fcvmFirstOutput(b) // so that the image's disk is there
	one := func(pattern string) string {
		found, err := filepath.Glob(filepath.Join(env.data, pattern))
		if err != nil || len(found) == 0 {
			b.Fatalf("no %s in %s", pattern, env.data)
		}
		return found[0]
	}
	h.kernel, h.root = one("kernels/*/vmlinux"), one("roots/*/rootfs.ext4")
	h.image = imageDisk(b)
	h.initramfs = filepath.Join(h.dir, "initramfs")
	writeByHandInitramfs(b, h.initramfs, one("kernels/*/modules"))
	return h
}

// imageDisk is where fcvm keeps the disk of the benchmark's image.
func imageDisk(b *testing.B) string {
	b.Helper()
	img, err := images.Image(b.Context(), env.images, "busybox")
	if err != nil {
		b.Fatal(err)
	}
	id, err := img.ConfigName()
	if err != nil {
		b.Fatal(err)
	}
	return filepath.Join(env.data, "images", "disks", id.Hex, "image.ext4")
}

const byHandInit = `#!/busybox sh
/busybox mount -t devtmpfs none /dev
/busybox mount -t proc none /proc
/busybox mount -t sysfs none /sys
/busybox mount -t tmpfs none /run
for m in $(/busybox cat /modules/boot.list); do /busybox insmod /modules/$m; done
/busybox mkdir -p /run/lower /run/image /run/scratch /newroot
/busybox mount -t ext4 -o ro /dev/vda /run/lower
/busybox mount -t ext4 -o ro /dev/vdb /run/image
/busybox mount -t ext4 /dev/vdc /run/scratch
/busybox mkdir /run/scratch/upper /run/scratch/work /run/scratch/containers /run/scratch/state /run/containers
/busybox mount -t overlay -o lowerdir=/run/lower,upperdir=/run/scratch/upper,workdir=/run/scratch/work none /newroot
/busybox mount -o bind /run/scratch/containers /newroot/var/lib/containers
/busybox mount -o bind /run/scratch/state /run/containers
for d in dev proc sys run; do /busybox mount -o move /$d /newroot/$d; done
/busybox mkdir -p /newroot/dev/pts /newroot/dev/shm
/busybox mount -t devpts none /newroot/dev/pts
/busybox mount -t tmpfs none /newroot/dev/shm
/busybox mount -t cgroup2 none /newroot/sys/fs/cgroup
: | /busybox chroot /newroot /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root podman --cgroup-manager=cgroupfs --events-backend=none run --network=host --log-driver=passthrough --rootfs /run/image/` + agentapi.ImageRoot + `:O echo ` + firstOutput + ` 2>&1 | /busybox cat
/busybox reboot -f
`

func writeByHandInitramfs(b *testing.B, path, modules string) {
	b.Helper()
	busybox, err := images.Busybox(b.Context(), env.images)
	if err != nil {
		b.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	w := initramfs.NewWriter(f)
	check := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	for _, d := range []string{"dev", "proc", "sys", "run", "modules"} {
		check(w.Dir(d, 0o755))
	}
	check(w.Char("dev/console", 0o600, 5, 1))
	add := func(name, from string) {
		data, err := os.ReadFile(from)
		check(err)
		check(w.File(name, 0o755, data))
	}
	add("busybox", busybox)
	check(w.File("init", 0o755, []byte(byHandInit)))
	entries, err := os.ReadDir(modules)
	check(err)
	for _, e := range entries {
		add("modules/"+e.Name(), filepath.Join(modules, e.Name()))
	}
	check(w.Close())
	check(f.Close())
}

func (h *byHand) firstOutput(b *testing.B) time.Duration {
	b.Helper()
	scratch := filepath.Join(h.dir, "scratch.ext4")
	for _, c := range [][]string{{"truncate", "-s", "16G", scratch}, {"mkfs.ext4", "-q", "-F", scratch}} {
		if out, err := exec.CommandContext(b.Context(), c[0], c[1:]...).CombinedOutput(); err != nil {
			b.Fatalf("%q: %v\n%s", c, err, out)
		}
	}
	defer func() { _ = os.Remove(scratch) }()
	ctx, cancel := context.WithTimeout(b.Context(), runTimeout)
	defer cancel()
	disk := func(path, ro string) []string {
		return []string{"-drive", fmt.Sprintf("file=%s,format=raw,if=virtio,readonly=%s", path, ro)}
	}
	args := slices.Concat([]string{
		"-M", "q35,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "512", "-nodefaults", "-no-user-config",
		"-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", h.kernel, "-initrd", h.initramfs,
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off",
	}, disk(h.root, "on"), disk(h.image, "on"), disk(scratch, "off"))
	cmd := exec.CommandContext(ctx, h.program, args...)
	cmd.Stdin = strings.NewReader("")
	return timeToOutput(b, cmd)
}
