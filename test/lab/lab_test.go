package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fcvm/fcvm/internal/agentapi"
)

func TestStream(t *testing.T) {
	var in, stdout, stderr bytes.Buffer
	w := agentapi.NewFrameWriter(&in)
	for _, f := range []struct {
		t agentapi.FrameType
		p string
	}{
		{agentapi.FrameStdout, "one "},
		{agentapi.FrameStderr, "error"},
		{agentapi.FrameStdout, "two"},
		{agentapi.FrameExit, `{"code":7}`},
		{agentapi.FrameStdout, "never"},
	} {
		if err := w.Write(f.t, []byte(f.p)); err != nil {
			t.Fatal(err)
		}
	}
	e, err := stream(&in, &stdout, &stderr, 0)
	if err != nil || e.Code != 7 || stdout.String() != "one two" || stderr.String() != "error" {
		t.Errorf("%+v, %v, %q, %q", e, err, stdout.String(), stderr.String())
	}
	if _, err := stream(bytes.NewReader(nil), &stdout, &stderr, 0); !errors.Is(err, io.EOF) {
		t.Errorf("a lab that ends without an exit: %v", err)
	}
}

// A lab that gives no sign any more is dead; one whose job writes nothing hangs; one
// whose job does write is neither.
func TestSilence(t *testing.T) {
	const limit = 1500 * time.Millisecond
	for _, tt := range []struct {
		name    string
		frames  []string
		silence time.Duration
		want    error
	}{
		{"dead", []string{".", ".", ".", ".", ".", "."}, 0, os.ErrDeadlineExceeded},
		{"writes", []string{".", "", ".", "", ".", "", "."}, limit / 2, os.ErrDeadlineExceeded},
		{"hangs", []string{".", "", "", "", ""}, limit / 2, errSilent},
		{"quiet", []string{".", "", "", "", ""}, 0, os.ErrDeadlineExceeded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ours, theirs, err := socketPair()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = errors.Join(ours.Close(), theirs.Close()) }()
			go func() {
				w := agentapi.NewFrameWriter(theirs)
				for _, f := range tt.frames {
					time.Sleep(limit / 5)
					_ = w.Write(agentapi.FrameStdout, []byte(f))
				}
			}()
			var stdout bytes.Buffer
			_, err = stream(&impatient{ours, limit}, &stdout, io.Discard, tt.silence)
			if want := strings.Join(tt.frames, ""); !errors.Is(err, tt.want) || stdout.String() != want {
				t.Errorf("%v after %q, want %v after %q", err, stdout.String(), tt.want, want)
			}
		})
	}
}

// A data directory arrives with the times by which fcvm knows its artifacts,
// owned by who is to use it, and without what is only the host's.
func TestArchive(t *testing.T) {
	dir := t.TempDir()
	then := time.Unix(1_700_000_000, 123_456_789)
	for _, d := range []string{"kernels/1", "vms/abc"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"kernels/1/vmlinux", "vms/abc/state.json"} {
		path := filepath.Join(dir, f)
		if err := os.WriteFile(path, []byte("content"), 0o400); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, then, then); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("1", filepath.Join(dir, "kernels", "current")); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := archive(&b, dir, 1000, []string{"vms"}); err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		if h.Uid != 1000 || h.Gid != 1000 {
			t.Errorf("%s belongs to %d:%d", h.Name, h.Uid, h.Gid)
		}
		if filepath.Base(h.Name) == "vmlinux" && (!h.ModTime.Equal(then) || h.Mode != 0o400) {
			t.Errorf("%s has time %s, mode %o", h.Name, h.ModTime, h.Mode)
		}
		if filepath.Base(h.Name) == "current" && h.Linkname != "1" {
			t.Errorf("%s leads to %q", h.Name, h.Linkname)
		}
	}
	slices.Sort(names)
	for i, n := range names {
		names[i] = filepath.Clean(n)
	}
	if d := cmp.Diff([]string{".", "kernels", "kernels/1", "kernels/1/vmlinux", "kernels/current"}, names); d != "" {
		t.Error(d)
	}
}

func TestCacheGet(t *testing.T) {
	c := &cache{t.TempDir()}
	made := 0
	fill := func(dir string) error {
		made++
		return os.WriteFile(filepath.Join(dir, "f"), nil, 0o600)
	}
	first, err := c.get("thing", "1", fill)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.get("thing", "1", fill); err != nil || again != first || made != 1 {
		t.Errorf("%s, %v, made %d times", again, err, made)
	}
	if other, err := c.get("thing", "2", fill); err != nil || other == first || made != 2 {
		t.Errorf("%s, %v, made %d times", other, err, made)
	}
	broken := errors.New("broken")
	if _, err := c.get("thing", "3", func(string) error { return broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
	entries, err := os.ReadDir(c.dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("%d entries after a failure, %v", len(entries), err)
	}
}

// A program is changed where it is known, and nowhere else.
func TestPatch(t *testing.T) {
	p := patch{before: "before", old: "old", new: "new", after: "after"}
	for content, want := range map[string]string{
		"_old_beforeoldafter_":              "_old_beforenewafter_",
		"another build":                     "another build",
		"beforeoldafter and beforeoldafter": "beforeoldafter and beforeoldafter",
	} {
		path := filepath.Join(t.TempDir(), "program")
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		mended, err := p.apply(path)
		got, _ := os.ReadFile(path)
		if err != nil || string(got) != want || mended != (want != content) {
			t.Errorf("%q became %q (%t, %v)", content, got, mended, err)
		}
	}
	if len(vmrunFault.old) != len(vmrunFault.new) {
		t.Error("the instructions differ in length")
	}
}

func TestParse(t *testing.T) {
	t.Setenv("FCVM_FIRECRACKER", "/opt/firecracker")
	o, err := parse([]string{"-user", "-copy", "a", "-copy", "b", "-cache", "c", "--", "prog", "-x"})
	if err != nil {
		t.Fatal(err)
	}
	if !o.user || o.firecracker != "/opt/firecracker" || !slices.Equal(o.copies, []string{"a", "b"}) || !slices.Equal(o.job, []string{"prog", "-x"}) {
		t.Errorf("%+v", o)
	}
	if _, err := parse([]string{"-cache", "c"}); err == nil {
		t.Error("no program, and no error")
	}
}

func TestPlanned(t *testing.T) {
	for line, want := range map[string][]string{
		"Inst seabios [1.16.2-1] (1.16.3-2~bpo12+1 Debian Backports:oldstable-backports [all])": {"seabios", "1.16.3-2~bpo12+1"},
		"Inst libfdt1 (1.6.1-4+b1 Debian:12.12/oldstable [amd64]) []":                           {"libfdt1", "1.6.1-4+b1"},
		"Conf seabios (1.16.3-2~bpo12+1 Debian Backports:oldstable-backports [all])":            nil,
		"Remv qemu-system-gui [1:7.2+dfsg-7]":                                                   nil,
	} {
		m := planned.FindStringSubmatch(line)
		if len(m) > 0 {
			m = m[1:]
		}
		if d := cmp.Diff(want, m); d != "" {
			t.Errorf("%s: %s", line, d)
		}
	}
}
