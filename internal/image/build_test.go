package image

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/fcvm/fcvm/internal/progress"
)

// tarOf makes a layer's archive of names and contents.
func tarOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for n, content := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: n, Mode: 0o755, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// newImage makes an image of one layer per map, for linux/arch.
func newImage(t *testing.T, arch string, layers ...map[string]string) v1.Image {
	t.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	for _, files := range layers {
		b := tarOf(t, files)
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(b)), nil
		}, tarball.WithMediaType(types.OCILayer))
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			t.Fatal(err)
		}
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", arch
	cf.Config = v1.Config{
		Entrypoint: []string{"/entry"}, Cmd: []string{"arg"}, Env: []string{"PATH=/bin", "A=b"},
		WorkingDir: "/work", User: "nobody", Labels: map[string]string{"l": "v"}, StopSignal: "SIGQUIT",
		Volumes:     map[string]struct{}{"/z": {}, "/a": {}},
		Healthcheck: &v1.HealthConfig{Test: []string{"CMD", "true"}, Interval: time.Second, Retries: 2},
	}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	return img
}

func configDigest(t *testing.T, img v1.Image) string {
	t.Helper()
	h, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

// writeLayout writes an OCI layout; each image is named if its name is not
// empty.
func writeLayout(t *testing.T, images map[string]v1.Image) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for n, img := range images {
		var o []layout.Option
		if n != "" {
			o = append(o, layout.WithAnnotations(map[string]string{annotationRef: n}))
		}
		if err := p.AppendImage(img, o...); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// tarDir makes an archive of a directory.
func tarDir(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "archive.tar")
	args = append(append([]string{"-C", dir}, args...), "-cf", out, ".")
	if b, err := exec.Command("tar", args...).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, b)
	}
	return out
}

func writeDocker(t *testing.T, tag string, img v1.Image) string {
	t.Helper()
	ref, err := name.NewTag(tag)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "docker.tar")
	if err := tarball.WriteToFile(out, ref, img); err != nil {
		t.Fatal(err)
	}
	return out
}

func openStore(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// checkClean fails if a conversion has left anything but the images.
func checkClean(t *testing.T, s *Store, disks int) {
	t.Helper()
	for dir, want := range map[string]int{"work": 0, "locks": 0, "disks": disks} {
		list, err := os.ReadDir(s.join(dir))
		if err != nil {
			t.Fatal(err)
		}
		if len(list) != want {
			t.Errorf("%s: %d entries, want %d: %v", dir, len(list), want, list)
		}
	}
}

// catDisk reads a file of an image's disk with debugfs.
func catDisk(t *testing.T, disk, name string) string {
	t.Helper()
	debugfs := "/usr/sbin/debugfs"
	if _, err := os.Stat(debugfs); err != nil {
		t.Skip("debugfs (package e2fsprogs) is not installed")
	}
	out, err := exec.Command(debugfs, "-R", "cat /rootfs/"+name, disk).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// recorder keeps what was reported.
type recorder struct {
	mu    sync.Mutex
	notes []string
	tasks map[string]int64 // bytes, by name
	open  int
}

func (r *recorder) Task(name string, _ int64) progress.Task {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tasks == nil {
		r.tasks = map[string]int64{}
	}
	r.tasks[name] += 0
	r.open++
	return recordedTask{r, name}
}

func (r *recorder) Note(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notes = append(r.notes, line)
}

func (r *recorder) count(prefix string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for name := range r.tasks {
		if strings.HasPrefix(name, prefix) {
			n++
		}
	}
	return n
}

type recordedTask struct {
	r    *recorder
	name string
}

func (t recordedTask) Add(n int64) {
	t.r.mu.Lock()
	defer t.r.mu.Unlock()
	t.r.tasks[t.name] += n
}

func (t recordedTask) Done(error) {
	t.r.mu.Lock()
	defer t.r.mu.Unlock()
	t.r.open--
}

// writeIndex writes an OCI layout that holds one image for several
// architectures, and an attestation, as docker buildx does.
func writeIndex(t *testing.T, images map[string]v1.Image) string {
	t.Helper()
	idx := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for arch, img := range images {
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: "linux", Architecture: arch},
		}})
	}
	idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: empty.Image, Descriptor: v1.Descriptor{
		Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"},
	}})
	dir := filepath.Join(t.TempDir(), "layout")
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendIndex(idx); err != nil {
		t.Fatal(err)
	}
	return dir
}
