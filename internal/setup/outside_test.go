package setup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/fcvm/fcvm/internal/paths"
	"github.com/fcvm/fcvm/internal/setup/preflight"
)

// What an interrupted build has left outside of the data directory goes with
// its work directory; a record that names something else removes nothing.
func TestSweepOutside(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	s := New(paths.Layout{Data: t.TempDir()}, "amd64", "")
	work, err := workDir(s.layout.Roots())
	if err != nil {
		t.Fatal(err)
	}
	dir, err := outsideDir(work)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v: others cannot enter", st.Mode(), err)
	}
	if err := os.WriteFile(filepath.Join(dir, "left"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	foreign, err := workDir(s.layout.Roots())
	if err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, outsideFile), []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	unlock, err := s.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	for _, gone := range []string{dir, work, foreign} {
		if _, err := os.Stat(gone); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", gone, err)
		}
	}
	if _, err := os.Stat(other); err != nil {
		t.Errorf("%s, which a record only named: %v", other, err)
	}
}

// The message names what did not pass, and takes no advice for a command.
func TestLacking(t *testing.T) {
	err := lacking(preflight.Check{Name: "user namespaces", Detail: "cannot be used", Remedy: "allow user namespaces"})
	const want = "the host lacks what this needs: user namespaces: cannot be used; to mend it: allow user namespaces"
	if !errors.Is(err, ErrTool) || err.Error() != want {
		t.Errorf("got %q", err)
	}
}
