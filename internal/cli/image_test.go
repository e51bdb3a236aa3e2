package cli

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/snapshot"
	"github.com/fcvm/fcvm/internal/vm"
)

// root is a directory to import.
func (h *host) root(content string) string {
	h.t.Helper()
	dir := h.t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin", "sh"), []byte(content), 0o755); err != nil {
		h.t.Fatal(err)
	}
	return dir
}

func (h *host) importRoot(name, content string) string {
	h.t.Helper()
	return strings.TrimSpace(h.ok("image", "import", "-q", "--change", `CMD ["/bin/sh"]`, h.root(content), name))
}

// Names lead to one image, and the last of them takes it along.
func TestImageNames(t *testing.T) {
	t.Setenv("CONTAINERS_REGISTRIES_CONF", filepath.Join(t.TempDir(), "none"))
	h := newHost(t)
	id := h.importRoot("app:1", "one")
	h.ok("image", "tag", "app:1", "quay.io/org/app", id[7:19], "app:2")
	out := h.ok("image", "ls", "--format", "{{.Repository}} {{.Tag}}")
	if out != "docker.io/library/app 1\ndocker.io/library/app 2\nquay.io/org/app latest\n" {
		// The third name is the id's beginning, which is a name like any other.
		if !strings.Contains(out, id[7:19]) || strings.Count(out, "\n") != 4 {
			t.Errorf("names:\n%s", out)
		}
	}
	if out := h.ok("images", "-q", "--no-trunc"); out != id+"\n" {
		t.Errorf("ids: %q, want %s once", out, id)
	}
	h.says(".*several names.*say which, or remove all with --force", "image", "rm", id)
	if out := h.ok("image", "rm", "app:2"); out != "Untagged: docker.io/library/app:2\n" {
		t.Errorf("rm of one name: %q", out)
	}
	var details []imageDetails
	if err := json.Unmarshal([]byte(h.ok("image", "inspect", "app:1")), &details); err != nil {
		t.Fatal(err)
	}
	if len(details) != 1 || details[0].ID != id || len(details[0].RepoTags) != 3 || details[0].Config.Cmd[0] != "/bin/sh" || len(details[0].Layers) != 1 || len(details[0].DiffIDs) != 1 {
		t.Errorf("%+v", details)
	}
	if out := h.ok("image", "history", "--format", "{{.CreatedBy}}", "app:1"); out != "fcvm image import\n" {
		t.Errorf("history: %q", out)
	}
	if out := h.ok("image", "rm", "--force", id); !strings.HasSuffix(out, "Deleted: "+id+"\n") {
		t.Errorf("rm: %q", out)
	}
	h.says(".*no such image in the cache.*", "image", "rm", id)
	h.ok("image", "rm", "--force", id)
	if out := h.ok("image", "ls", "-q"); out != "" {
		t.Errorf("left: %q", out)
	}
}

// What a VM uses stays, ended or not, whatever is asked for.
func TestImageInUseStays(t *testing.T) {
	t.Setenv("CONTAINERS_REGISTRIES_CONF", filepath.Join(t.TempDir(), "none"))
	h := newHost(t)
	id, other := h.importRoot("app", "one"), h.importRoot("other", strings.Repeat("two", 1<<20))
	ended := h.create("ended", defaultSpec())
	if err := ended.Update(func(r *vm.Record) error { r.Resolved.ImageDigest = id; return nil }); err != nil {
		t.Fatal(err)
	}
	h.end(ended, 0)
	h.says(".*remove image app: it is used by "+regexp.QuoteMeta(ended.Record().ID), "image", "rm", "--force", "app")
	if out := h.ok("image", "prune", "--all", "--force", "--filter", "until=1h"); out != "Nothing to remove.\n" {
		t.Errorf("prune of what is an hour old: %q", out)
	}
	_, _, errs := h.fcvm("image", "prune", "--max-size", "1m")
	if !strings.Contains(errs, "removed image docker.io/library/other:latest ("+other+")") {
		t.Errorf("prune --max-size: %q", errs)
	}
	if out := h.ok("image", "ls", "-q", "--no-trunc"); out != id+"\n" {
		t.Errorf("left: %q", out)
	}
	h.ok("image", "prune", "--all", "--force")
	if out := h.ok("image", "ls", "-q", "--no-trunc"); out != id+"\n" {
		t.Errorf("left after prune --all: %q", out)
	}
	h.ok("rm", "ended")
	h.ok("image", "prune", "--all", "--force")
	if out := h.ok("image", "ls", "-q"); out != "" {
		t.Errorf("left without the VM: %q", out)
	}
}

// A guest that fcvm has kept by itself goes with its image, whichever way that is
// removed. One that a VM runs from keeps it, as one does that somebody asked for.
func TestImageTakesKeptGuestsAlong(t *testing.T) {
	t.Setenv("CONTAINERS_REGISTRIES_CONF", filepath.Join(t.TempDir(), "none"))
	for _, c := range []struct {
		what string
		args []string
		code int // while the snapshot keeps the image
	}{
		{"rm", []string{"image", "rm", "app"}, exitFailed},
		{"prune", []string{"image", "prune", "--all", "--force"}, 0},
		{"limit", []string{"image", "prune", "--max-size", "1m"}, 0},
		{"system", []string{"system", "prune", "--all", "--force"}, 0},
	} {
		for _, kind := range []string{"automatic", "held", "asked for"} {
			if kind == "asked for" && c.what == "system" {
				continue // with --all it goes, too
			}
			h := newHost(t)
			if err := errors.Join(os.MkdirAll(h.data, 0o700), os.WriteFile(h.layout().Setup(), []byte(`{"schema":1}`), 0o600)); err != nil {
				t.Fatal(err)
			}
			id := h.importRoot("app", strings.Repeat("one", 1<<20))
			m := h.snapshot("", func(m *snapshot.Manifest) {
				m.Needs.ImageDigest = id
				if kind != "asked for" {
					m.Key, m.Guest = "key", snapshot.GuestUp
				}
			})
			store := snapshot.New(h.layout().Snapshots())
			var held *snapshot.Snapshot
			if kind == "held" {
				var err error
				if held, err = store.Hold(m.ID); err != nil {
					t.Fatal(err)
				}
			}
			code, out, errs := h.fcvm(c.args...)
			_, err := store.Find(m.ID)
			gone := !strings.Contains(h.ok("image", "ls", "-q", "--no-trunc"), id)
			if held != nil {
				held.Release()
			}
			want := kind == "automatic"
			if gone != want || errors.Is(err, snapshot.ErrNotFound) != want || (want && code != 0) || (!want && code != c.code) {
				t.Errorf("%s, %s: image gone %t, snapshot: %v, code %d\n%s%s", c.what, kind, gone, err, code, out, errs)
			}
		}
	}
}

// The least recently used goes first.
func TestImageLimit(t *testing.T) {
	t.Setenv("CONTAINERS_REGISTRIES_CONF", filepath.Join(t.TempDir(), "none"))
	h := newHost(t)
	a, b := h.importRoot("a", strings.Repeat("a", 3<<20)), h.importRoot("b", strings.Repeat("b", 3<<20))
	h.ok("image", "build-disk", "-q", "--pull", "never", "a") // which was used last
	code, c, errs := h.fcvm("image", "import", "-q", "--max-size", "18m", h.root(strings.Repeat("c", 3<<20)), "c")
	if c = strings.TrimSpace(c); code != 0 || !strings.Contains(errs, "removed image docker.io/library/b:latest ("+b+"), to keep the images below 18.0 MiB") {
		t.Errorf("code %d, stderr %q", code, errs)
	}
	if out := h.ok("image", "ls", "-q", "--no-trunc"); !strings.Contains(out, a) || strings.Contains(out, b) || !strings.Contains(out, c) {
		t.Errorf("left: %q, want %s and %s, not %s", out, a, c, b)
	}
}

// An image goes out and comes in again as it was, and its disk can be had.
func TestImageSaveLoadDisk(t *testing.T) {
	t.Setenv("CONTAINERS_REGISTRIES_CONF", filepath.Join(t.TempDir(), "none"))
	h, other := newHost(t), newHost(t)
	id := h.importRoot("app:1", "one")
	archive := filepath.Join(t.TempDir(), "app.tar")
	for _, format := range []string{"docker-archive", "oci-archive"} {
		h.ok("image", "save", "-q", "--format", format, "-o", archive, "app:1")
		if out := other.ok("image", "load", "-q", "-i", archive); out != "Loaded image: docker.io/library/app:1\n" {
			t.Errorf("%s: load: %q", format, out)
		}
		if out := other.ok("image", "ls", "-q", "--no-trunc"); out != id+"\n" {
			t.Errorf("%s: another image came in: %q, want %s", format, out, id)
		}
		other.ok("image", "rm", "app:1")
	}
	disk := filepath.Join(t.TempDir(), "disk")
	if out := h.ok("image", "build-disk", "-q", "-o", disk, id); out != disk+"\n" {
		t.Errorf("build-disk: %q", out)
	}
	if st, err := os.Stat(disk); err != nil || st.Size() == 0 {
		t.Errorf("%v, %v", st, err)
	}
	path := strings.TrimSpace(h.ok("image", "inspect", "--format", "{{.Disk.Path}}", id))
	if out := h.ok("image", "verify", "-q"); !strings.Contains(out, ": ok\n") {
		t.Errorf("verify: %q", out)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteAt([]byte{1}, 8192+17); err != nil {
		t.Fatal(err)
	}
	h.says(".*is damaged: disk; make it good with: fcvm image verify.*", "image", "verify", "-q", "--check-only")
	if out := h.ok("image", "verify", "-q"); !strings.Contains(out, "damaged and made good: disk") {
		t.Errorf("verify: %q", out)
	}
}

func TestImageFlagsAreRefused(t *testing.T) {
	h := newHost(t)
	for args, want := range map[string]string{
		"image pull":                         "no image given",
		"image pull --tls-verify=maybe x":    "it is true or false",
		"image tag x":                        "an image and its new name",
		"image prune --all --max-size 1g":    "none of the others can be",
		"image ls --filter x=y":              "the key is",
		"image ls --filter dangling=perhaps": "it is true or false",
		"image import":                       "a file, a directory or -",
		"image save --format zip x":          "docker-archive or oci-archive",
		"image build-disk -o f a b":          "--output is for one image",
	} {
		code, out, errs := h.fcvm(strings.Fields(args)...)
		if code != exitFailed || out != "" || !strings.Contains(errs, want) {
			t.Errorf("fcvm %s: code %d, stdout %q, stderr %q, want %q", args, code, out, errs, want)
		}
	}
}
