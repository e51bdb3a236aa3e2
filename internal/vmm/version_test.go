package vmm

import (
	"os"
	"path/filepath"
	"testing"
)

func TestVersionsAreAskedOnce(t *testing.T) {
	dir := t.TempDir()
	program, asked := filepath.Join(dir, "vmm"), filepath.Join(dir, "asked")
	script := func(says string) {
		t.Helper()
		_ = os.Remove(program)
		if err := os.WriteFile(program, []byte("#!/bin/sh\necho x >>"+asked+"\necho "+says+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	times := func() int {
		b, _ := os.ReadFile(asked)
		return len(b) / 2
	}
	of := func(v *Versions, want string) {
		t.Helper()
		if got, err := v.Of(t.Context(), program); err != nil || got != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
	script("one")
	v := NewVersions(filepath.Join(dir, "versions.json"))
	of(v, "one\n")
	of(v, "one\n")
	of(NewVersions(v.path), "one\n")
	if n := times(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	script("two")
	of(v, "two\n")
	if err := os.WriteFile(v.path, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	of(v, "two\n")
	of(NewVersions(""), "two\n")
	of(nil, "two\n")
	if n := times(); n != 5 {
		t.Errorf("asked %d times, want 5", n)
	}
	if _, err := v.Of(t.Context(), filepath.Join(dir, "none")); err == nil {
		t.Error("a program that is not there has a version")
	}
}
