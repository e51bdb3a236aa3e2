package cli

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
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
		if got, err := environment(o.envFiles, nil, lookupIn(nil)); err != nil || !slices.Equal(got, want) {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", fmt.Sprintf("tr -d '\\r\\n' </proc/self/fd/%d >&%d; echo >&%d", detachedFileFD, detachedFD, detachedFD))
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = os.Environ()
	id, err := startDetached(t.Context(), "the test", cmd)
	if want := "A=b c FROM_HOST=hereB=1B=2"; err != nil || id != want {
		t.Errorf("the process in the background has read %q, %v, want %q", id, err, want)
	}
	_ = cmd.Wait()
}

func TestNoEnvFileTakesNoDescriptor(t *testing.T) {
	if f, err := new(runOptions).oneEnvFile(lookupIn(nil)); f != nil || err != nil {
		t.Errorf("%v, %v", f, err)
	}
}
