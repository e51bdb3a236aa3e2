package matrix

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	"golang.org/x/sys/unix"
)

// BenchmarkImageToDisk measures how long it takes to make a disk of an image,
// beside umoci unpack followed by mke2fs -d, which write the same to the same
// file system. The two take turns; the ratio is that of the medians.
func BenchmarkImageToDisk(b *testing.B) {
	need(b, "umoci", "mke2fs")
	fcvm := program(b)
	for _, bench := range []struct {
		name  string
		fills []Fill
	}{
		{"1,000 files, 4 layers", files(4, 1000)},
		{"20,000 small files", smallFiles(20_000)},
	} {
		b.Run(bench.name, func(b *testing.B) {
			layout := filepath.Join(b.TempDir(), "layout")
			if err := WriteLayout(layout, bench.fills, compression.GZip); err != nil {
				b.Fatal(err)
			}
			var ours, theirs []time.Duration
			var bytes int64
			for b.Loop() {
				theirs = append(theirs, byHand(b, layout))
				var took time.Duration
				took, bytes = byFcvm(b, fcvm, layout)
				ours = append(ours, took)
			}
			us, them := median(ours), median(theirs)
			b.ReportMetric(us.Seconds(), "fcvm-s")
			b.ReportMetric(them.Seconds(), "umoci-mke2fs-s")
			b.ReportMetric(them.Seconds()/us.Seconds(), "times-as-fast")
			b.ReportMetric(float64(bytes>>20)/us.Seconds(), "fcvm-MiB/s")
			b.ReportMetric(0, "ns/op") // of both together: it says nothing
		})
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func byHand(b *testing.B, layout string) time.Duration {
	b.Helper()
	dir, err := os.MkdirTemp(b.TempDir(), "hand")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	disk := filepath.Join(dir, "disk.ext4")
	start := time.Now()
	run(b, "umoci", "unpack", "--image", layout+":x", filepath.Join(dir, "bundle"))
	run(b, "mke2fs", "-q", "-t", "ext4", "-d", filepath.Join(dir, "bundle", "rootfs"), disk, "2G")
	run(b, "sync", disk) // fcvm's disk is on the disk, too, when it says so
	return time.Since(start)
}

// byFcvm returns the time and the size of the disk, without holes, bytes.
func byFcvm(b *testing.B, fcvm, layout string) (time.Duration, int64) {
	b.Helper()
	data, err := os.MkdirTemp(b.TempDir(), "data")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(data) }()
	cmd := exec.Command(fcvm, "--data-dir", data, "image", "build-disk", "--quiet", "oci:"+layout)
	start := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	took := time.Since(start)
	return took, allocated(b, string(out[:len(out)-1]))
}

func allocated(b *testing.B, path string) int64 {
	b.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		b.Fatal(err)
	}
	return st.Blocks * 512
}
