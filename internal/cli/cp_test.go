package cli

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/fcvm/fcvm/internal/treecopy"
)

func TestCpWritesNoOtherNameThanItsSource(t *testing.T) {
	stream := func(name string) *bytes.Buffer {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600}), w.Close()); err != nil {
			t.Fatal(err)
		}
		return &b
	}
	a := newApp(System{})
	dst := t.TempDir()
	o := &cpOptions{from: "web:/srv/report.txt"}
	if err := a.unpack(stream(".bashrc"), "/srv/report.txt", dst, o); !errors.Is(err, treecopy.ErrStream) {
		t.Errorf("got %v", err)
	}
	if err := a.unpack(stream("report.txt"), "srv/report.txt", dst, o); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadDir(dst); err != nil || len(got) != 1 || got[0].Name() != "report.txt" {
		t.Errorf("written: %v, %v", got, err)
	}
}

func TestPathsOfCp(t *testing.T) {
	for arg, want := range map[string][2]string{
		"web:/etc":        {"web", "/etc"},
		"web:etc/a:b":     {"web", "etc/a:b"},
		"web:":            {"web", ""},
		"file":            {"", "file"},
		"/srv/a:b":        {"", "/srv/a:b"},
		"./a:b":           {"", "./a:b"},
		"..":              {"", ".."},
		"backup/12:30:00": {"", "backup/12:30:00"},
		"dir/web:/etc":    {"", "dir/web:/etc"},
		":/etc":           {"", ":/etc"},
		"-":               {"", "-"},
	} {
		if ref, path := splitPath(arg); ref != want[0] || path != want[1] {
			t.Errorf("%s: VM %q, path %q; want %q", arg, ref, path, want)
		}
	}
}
