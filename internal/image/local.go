package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/fcvm/fcvm/internal/progress"
)

// Images in other programs' storage are read with those programs: only they
// know how it is locked and laid out.

// storageProgram is a way to get an image out of a storage.
type storageProgram struct {
	name string
	id   []string // prints the image's id; empty: it cannot
	save []string // writes an archive; %o is the file
	kind kind     // of that archive
}

// storagePrograms for a kind of reference, the best first. The name of the
// image is put in place of %n.
var storagePrograms = map[kind][]storageProgram{
	kindContainersStorage: {
		{
			name: "podman", kind: kindOCIArchive,
			id:   []string{"image", "inspect", "--format", "{{.Id}}", "--", "%n"},
			save: []string{"image", "save", "--quiet", "--format", "oci-archive", "--output", "%o", "--", "%n"},
		},
		{
			name: "buildah", kind: kindOCIArchive,
			id:   []string{"inspect", "--type", "image", "--format", "{{.FromImageID}}", "--", "%n"},
			save: []string{"push", "--quiet", "--", "%n", "oci-archive:%o"},
		},
		{
			name: "skopeo", kind: kindOCIArchive,
			save: []string{"copy", "--quiet", "--", "containers-storage:%n", "oci-archive:%o"},
		},
	},
	kindDockerDaemon: {{
		name: "docker", kind: kindDockerArchive,
		id:   []string{"image", "inspect", "--format", "{{.Id}}", "--", "%n"},
		save: []string{"image", "save", "--output", "%o", "--", "%n"},
	}},
}

// storageWait is how long a program that was told to end may take for it.
const storageWait = 10 * time.Second

// findLocal finds an image in Podman's or Docker's storage.
func (s *Store) findLocal(ctx context.Context, r reference, want platform, p progress.Reporter) (*content, error) {
	if p == nil {
		p = progress.Discard
	}
	program, err := lookProgram(r)
	if err != nil {
		return nil, err
	}
	dir := s.join("work", "storage-"+rand.Text())
	l, err := takeLock(ctx, s.join("locks", filepath.Base(dir)), nil) // it is not swept
	if err != nil {
		return nil, s.diskError(err)
	}
	defer l.release()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, s.diskError(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	file := filepath.Join(dir, "archive.tar")
	task := p.Task("read "+r.text, 0)
	err = program.export(ctx, r, file)
	task.Done(err)
	if err != nil {
		return nil, err
	}
	// Once it is open the archive needs no name any more.
	return s.findFile(ctx, reference{text: r.text, kind: program.kind, path: file}, want)
}

// export writes the archive. Podman and buildah have what was built here below
// localhost, and do not all say so themselves.
func (p storageProgram) export(ctx context.Context, r reference, file string) error {
	names := []string{r.path}
	if r.kind == kindContainersStorage && isShort(r.path) {
		names = append(names, "localhost/"+r.path)
	}
	var err error
	for _, n := range names {
		if _, err = p.run(ctx, p.save, n, file); err == nil {
			return nil
		}
		if err = explainStorage(err, r, p.name); !errors.Is(err, ErrNotFound) {
			break
		}
	}
	return err
}

func lookProgram(r reference) (storageProgram, error) {
	var names []string
	for _, p := range storagePrograms[r.kind] {
		if _, err := exec.LookPath(p.name); err == nil {
			return p, nil
		}
		names = append(names, p.name)
	}
	prefix, _, _ := strings.Cut(r.text, ":")
	return storageProgram{}, fmt.Errorf("%w: %s: needs %s, which is not installed", ErrNotFound, prefix, strings.Join(names, ", or "))
}

// converted returns the image of a storage if the cache has its disk: what is
// here is not read again.
func (s *Store) converted(ctx context.Context, r reference, want platform) (Image, bool) {
	p, err := lookProgram(r)
	if err != nil || p.id == nil {
		return Image{}, false
	}
	out, err := p.run(ctx, p.id, r.path, "")
	if err != nil {
		return Image{}, false // saving it will tell what is wrong, or find it under another name
	}
	id := strings.TrimSpace(out)
	if !strings.HasPrefix(id, "sha256:") {
		id = "sha256:" + id
	}
	if !isDigest(id) {
		return Image{}, false
	}
	rec, img, err := s.lookup(id)
	return img, err == nil && checkPlatform(want, rec.Platform) == nil
}

func (p storageProgram) run(ctx context.Context, args []string, image, file string) (string, error) {
	words := make([]string, len(args))
	for i, a := range args {
		words[i] = strings.NewReplacer("%n", image, "%o", file).Replace(a)
	}
	cmd := exec.CommandContext(ctx, p.name, words...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = storageWait
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	return string(out), err
}

func explainStorage(err error, r reference, program string) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return fmt.Errorf("run %s: %w", program, err)
	}
	const shown = 1000
	text := strings.TrimSpace(string(exit.Stderr))
	text = text[max(0, len(text)-shown):]
	for _, words := range []string{"No such image", "image not known", "does not resolve to an image", "locating image"} {
		if strings.Contains(text, words) {
			return fmt.Errorf("%w: %s has no image %s: %s", ErrNotFound, program, r.path, text)
		}
	}
	if strings.Contains(text, "no space left") {
		return fmt.Errorf("%w: %s: %s", ErrNoSpace, program, text)
	}
	return fmt.Errorf("read %s with %s: %w: %s", r.text, program, err, text)
}
