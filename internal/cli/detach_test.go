package cli

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// What --env-file names may be read once and only here, as <(…) and /dev/stdin.
func TestEnvFilesReachTheProcessInTheBackground(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if _, err := w.WriteString("A=b c \nFROM_HOST\nB=1\r\r\n"); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	o := &runOptions{envFiles: []string{fmt.Sprintf("/proc/self/fd/%d", r.Fd()), writeEnvFile(t, "\ufeffB=2\r")}}
	lookup := lookupIn(map[string]string{"FROM_HOST": "here"})
	f, err := o.oneEnvFile(lookup)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	want := []string{"A=b c ", "FROM_HOST=here", "B=2"}
	for range 2 { // the one that checks, and the one in the background
		if got, err := environment(o.envFiles, nil, lookup); err != nil || !slices.Equal(got, want) {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", fmt.Sprintf("tr -d '\\r\\n' </proc/self/fd/%d >&%d; echo >&%d", detachedFileFD, detachedFD, detachedFD))
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = os.Environ()
	id, err := startDetached(t.Context(), "the test", cmd)
	if want := "A=b c FROM_HOSTB=1B=2"; err != nil || id != want {
		t.Errorf("the process in the background has read %q, %v, want %q", id, err, want)
	}
	_ = cmd.Wait()
}

// What a name without a value stands for here may be any bytes: line feeds, too.
func TestEnvFilesTakeAnyValueFromHere(t *testing.T) {
	lookup := lookupIn(map[string]string{"KEY": "-----BEGIN\nB=x y\n\xff\r", "HASH": "#1"})
	o := &runOptions{envFiles: []string{writeEnvFile(t, "KEY\nHASH\nUNSET\n")}}
	want, err := environment(o.envFiles, nil, lookup)
	if err != nil {
		t.Fatal(err)
	}
	f, err := o.oneEnvFile(lookup)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if got, err := environment(o.envFiles, nil, lookup); err != nil || !slices.Equal(got, want) {
		t.Errorf("in the background %q, %v, else %q", got, err, want)
	}
}

func TestBadEnvFilesAreNamedAsTheyWereGiven(t *testing.T) {
	good, bad := writeEnvFile(t, "A=1\n"), writeEnvFile(t, "B=1\n=x\n")
	o := &runOptions{envFiles: []string{good, bad}}
	if _, err := o.oneEnvFile(lookupIn(nil)); err == nil || !strings.Contains(err.Error(), bad) || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("got %v", err)
	}
}

func TestNoEnvFileTakesNoDescriptor(t *testing.T) {
	if f, err := new(runOptions).oneEnvFile(lookupIn(nil)); f != nil || err != nil {
		t.Errorf("%v, %v", f, err)
	}
}
