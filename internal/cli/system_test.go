package cli

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/vm"
)

// cache puts an image into the cache and returns its digest.
func (h *host) cache(ref string, referenced bool) string {
	h.t.Helper()
	sum := sha256.Sum256([]byte(ref))
	digest := hex.EncodeToString(sum[:])
	dir := filepath.Join(h.layout().Images(), "disks", digest)
	record := fmt.Sprintf(`{"schema":1,"digest":"sha256:%s","reference":%q,"created":"2026-01-01T00:00:00Z","size":8192}`, digest, ref)
	err := errors.Join(
		os.MkdirAll(dir, 0o700), os.MkdirAll(filepath.Join(h.layout().Images(), "refs"), 0o700),
		os.WriteFile(filepath.Join(dir, "image.ext4"), make([]byte, 8192), 0o600),
		os.WriteFile(filepath.Join(dir, "image.json"), []byte(record), 0o600),
	)
	if err == nil && referenced {
		res := fmt.Sprintf(`{"schema":1,"reference":%q,"digest":"sha256:%s"}`, ref, digest)
		err = os.WriteFile(filepath.Join(h.layout().Images(), "refs", digest+".json"), []byte(res), 0o600)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return "sha256:" + digest
}

func (h *host) kernel(id string) string {
	h.t.Helper()
	dir := filepath.Join(h.layout().Kernels(), id)
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "vmlinux"), make([]byte, 8192), 0o600)); err != nil {
		h.t.Fatal(err)
	}
	return dir
}

func (h *host) left(what ...string) string {
	h.t.Helper()
	var found []string
	for _, path := range what {
		if _, err := os.Stat(path); err == nil {
			found = append(found, filepath.Base(path))
		} else if !errors.Is(err, fs.ErrNotExist) {
			h.t.Fatal(err)
		}
	}
	return strings.Join(found, " ")
}

func TestPruneRemovesWhatNobodyUses(t *testing.T) {
	h := newHost(t)
	imageDir := func(digest string) string {
		return filepath.Join(h.layout().Images(), "disks", strings.TrimPrefix(digest, "sha256:"))
	}
	const current, old, used = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb", "cccccccccccccccc"
	kernels := []string{h.kernel(current), h.kernel(old), h.kernel(used)}
	if err := os.WriteFile(h.layout().Setup(), []byte(`{"schema":1,"kernel":{"id":"`+current+`"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	live := h.create("live", defaultSpec())
	liveImage, moved, kept, endedImage := h.cache("docker.io/x:1", true), h.cache("docker.io/x:0", false), h.cache("docker.io/y", true), h.cache("docker.io/z", false)
	uses := func(image, kernel string) func(*vm.Record) error {
		return func(r *vm.Record) error { r.Resolved.ImageDigest, r.Resolved.KernelID = image, kernel; return nil }
	}
	ended := h.create("ended", defaultSpec())
	if err := errors.Join(live.Update(uses(liveImage, used)), ended.Update(uses(endedImage, current))); err != nil {
		t.Fatal(err)
	}
	h.end(ended, 3)

	h.stdin = strings.NewReader("no\n")
	code, out, errs := h.fcvm("system", "prune")
	for _, want := range []string{"ended", "docker.io/x:0", old, "docker.io/z", " in all."} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say that it would remove %q:\n%s", want, out)
		}
	}
	if code != exitFailed || strings.Contains(out, "live") || strings.Contains(out, "docker.io/y") || !strings.Contains(errs, "[y/N] ") || !strings.Contains(errs, "nothing was removed") {
		t.Errorf("code %d, stderr %q:\n%s", code, errs, out)
	}
	if out := h.ok("system", "prune", "--dry-run", "--force"); !strings.Contains(out, "Would free ") || strings.Contains(out, "Removed") {
		t.Errorf("--dry-run:\n%s", out)
	}
	images := []string{imageDir(liveImage), imageDir(moved), imageDir(kept), imageDir(endedImage)}
	if n := len(strings.Fields(h.left(images...))); n != 4 {
		t.Fatalf("%d images are left when nothing was to be removed", n)
	}

	h.stdin = strings.NewReader("y\n")
	_, out, _ = h.fcvm("system", "prune")
	if strings.Count(out, "Removed ") != 4 || !strings.Contains(out, "Freed ") || strings.Contains(out, "Freed 0 B") {
		t.Errorf("prune:\n%s", out)
	}
	if got, want := h.left(kernels...), current+" "+used; got != want {
		t.Errorf("kernels %q, want %q", got, want)
	}
	if got, want := h.left(images...), filepath.Base(images[0])+" "+filepath.Base(images[2]); got != want {
		t.Errorf("images %q, want %q", got, want)
	}
	if out := h.ok("ls", "-a", "--format", "{{.Name}}"); out != "live\n" {
		t.Errorf("VMs: %q", out)
	}
	if out := h.ok("system", "prune"); out != "Nothing to remove.\n" {
		t.Errorf("once more: %q", out)
	}
	if out := h.ok("system", "prune", "-af"); !strings.Contains(out, "docker.io/library/y") || h.left(images...) != filepath.Base(images[0]) {
		t.Errorf("--all:\n%s", out)
	}
}

// What cannot be read may use anything, and may be somebody's who can.
func TestPruneIsCarefulWithWhatItCannotRead(t *testing.T) {
	h := newHost(t)
	const replaced = "bbbbbbbbbbbbbbbb"
	kernel := h.kernel(replaced)
	newer := h.create("newer", defaultSpec())
	broken := h.create("broken", defaultSpec())
	if err := errors.Join(
		os.Symlink(filepath.Join(kernel, "vmlinux"), filepath.Join(string(broken.Dir()), "kernel")),
		os.Truncate(broken.Dir().Record(), 7), broken.Close(),
		os.WriteFile(newer.Dir().Record(), []byte(`{"schema":99,"id":"`+newer.Record().ID+`"}`), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	for range 2 { // while one that may use anything lives, and when it has ended
		if out := h.ok("system", "prune", "-f"); out != "Nothing to remove.\n" {
			t.Errorf("prune: %q", out)
		}
		if err := newer.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if out := h.ok("system", "prune", "-af"); strings.Contains(out, newer.Record().ID) || h.left(string(newer.Dir()), string(broken.Dir()), kernel) != newer.Record().ID {
		t.Errorf("prune --all:\n%s", out)
	}
	kernel = h.kernel(replaced)
	if err := os.WriteFile(h.layout().Setup(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, errs := h.fcvm("system", "prune", "-af")
	if code != exitFailed || !strings.Contains(errs, "setup manifest is broken") || h.left(kernel) == "" {
		t.Errorf("without a manifest: code %d, %q", code, errs)
	}
}

func TestDfAddsUpByKind(t *testing.T) {
	h := newHost(t)
	h.create("live", defaultSpec())
	h.end(h.create("ended", defaultSpec()), 0)
	h.cache("docker.io/x", true)
	var rows []dfRow
	if err := json.Unmarshal([]byte(h.ok("system", "df", "--format", "json")), &rows); err != nil {
		t.Fatal(err)
	}
	if len(rows) != 10 || rows[0].Total != 2 || rows[0].Active != 1 || rows[0].Reclaimable == 0 || rows[0].Reclaimable >= rows[0].Size ||
		rows[2].Total != 1 || rows[2].Active != 0 || rows[2].Size < 8192 || rows[2].Reclaimable != rows[2].Size {
		t.Errorf("%+v", rows)
	}
	if out := h.ok("system", "df"); strings.Count(out, "\n") != 11 || !strings.Contains(out, "RECLAIMABLE") {
		t.Errorf("table:\n%s", out)
	}
	if out := h.ok("system", "df", "-v"); !strings.Contains(out, "docker.io/library/x") || !strings.Contains(out, "ended") {
		t.Errorf("-v:\n%s", out)
	}
}
