package atomicfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// makers are the two ways in which a file begins.
var makers = map[string]func(string, os.FileMode) (*File, error){"without a name": Create, "with a name": createNamed}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestCommitAndDiscard(t *testing.T) {
	for what, create := range makers {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "record")
			commits := map[string]func(*File) error{"first": (*File).Commit, "and second": (*File).CommitSoon}
			for _, text := range []string{"first", "and second"} {
				f, err := create(path, 0o640)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := f.WriteString(text); err != nil {
					t.Fatal(err)
				}
				if b, _ := os.ReadFile(path); string(b) == text {
					t.Error("it is there before Commit")
				}
				if err := commits[text](f); err != nil {
					t.Fatal(err)
				}
				f.Discard()
				st, err := os.Stat(path)
				if err != nil || st.Mode() != 0o640 || st.Size() != int64(len(text)) {
					t.Errorf("%v, %v", st, err)
				}
			}
			f, err := create(path, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteString("never"); err != nil {
				t.Fatal(err)
			}
			f.Discard()
			f.Discard()
			if b, err := os.ReadFile(path); string(b) != "and second" || err != nil {
				t.Errorf("%q, %v", b, err)
			}
			if list := names(t, dir); len(list) != 1 {
				t.Errorf("left: %q", list)
			}
		})
	}
}

func TestCommitFails(t *testing.T) {
	for what, create := range makers {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "d")
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
			f, err := create(path, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Commit(); err == nil {
				t.Error("a directory was replaced")
			}
			if list := names(t, dir); len(list) != 1 {
				t.Errorf("left: %q", list)
			}
		})
	}
}

func TestNoSuchDirectory(t *testing.T) {
	if err := Write(filepath.Join(t.TempDir(), "no", "file"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// TestKilled kills a writer at any moment: what is there is whole, and nothing
// else is, neither beside it nor among the temporary files.
func TestKilled(t *testing.T) {
	if path := os.Getenv("ATOMICFILE_TEST_PATH"); path != "" {
		for b := byte(0); ; b++ {
			if err := Write(path, bytes.Repeat([]byte{b}, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	dir, temp := t.TempDir(), t.TempDir()
	path := filepath.Join(dir, "file")
	f, err := Create(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Discard()
	if f.temp != "" {
		t.Skip("this file system knows no files without names")
	}
	left := 0
	for i := range 20 {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestKilled$")
		cmd.Env = append(os.Environ(), "ATOMICFILE_TEST_PATH="+path, "TMPDIR="+temp)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(20+7*i) * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		left += len(names(t, temp))
		for _, name := range names(t, dir) {
			if name == filepath.Base(path) {
				continue
			}
			left++ // once
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || len(b) != 1<<20 || bytes.Count(b, b[:1]) != len(b) {
			t.Errorf("%d bytes of several sorts, %v", len(b), err)
		}
	}
	// Between the link and the rename it has two names: a moment of 20 runs.
	if left > 5 {
		t.Errorf("%d files were left by 20 processes", left)
	}
	t.Log(left, "left")
}
