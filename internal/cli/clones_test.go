package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// testClonesEnv tells the process of TestIsAClone where to say that it is there.
const testClonesEnv = "FCVM_TEST_CLONES"

// TestIsAClone is what the tests below start for each clone: it waits for signals,
// says how many there were, and ends as if by the first.
func TestIsAClone(t *testing.T) {
	dir := os.Getenv(testClonesEnv)
	if dir == "" {
		t.Skip("it is a part of other tests")
	}
	signals := make(chan os.Signal, signalBuffer)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if err := os.WriteFile(filepath.Join(dir, os.Getenv(cloneNumberEnv)), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	<-signals
	more := 0
	for after := time.After(200 * time.Millisecond); ; {
		select {
		case <-signals:
			more++
			continue
		case <-after:
		}
		break
	}
	fmt.Printf("group %t signals %d\n", syscall.Getpgrp() == os.Getpid(), 1+more)
	os.Exit(128 + int(syscall.SIGINT))
}

// clonesOf is an app whose clones are processes of TestIsAClone, and the directory in
// which they say that they are there.
func clonesOf(t *testing.T, stdout io.Writer) (a *app, dir string) {
	t.Helper()
	dir = t.TempDir()
	t.Setenv(testClonesEnv, dir)
	return newApp(System{Args: []string{"-test.run=^TestIsAClone$"}, Stdout: stdout, Stderr: io.Discard}), dir
}

// interruptOnce sends this process a SIGINT when there are so many clones.
func interruptOnce(ctx context.Context, dir string, clones int) {
	for ctx.Err() == nil {
		if l, err := os.ReadDir(dir); err == nil && len(l) >= clones {
			_ = syscall.Kill(os.Getpid(), syscall.SIGINT)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// A clone gets each signal once: it is not in the terminal's foreground, whose
// processes all get what is typed, beside what this one passes on.
func TestAClonesSignals(t *testing.T) {
	var out strings.Builder
	a, dir := clonesOf(t, &out)
	go interruptOnce(t.Context(), dir, 2)
	err := a.startClones(t.Context(), &cloneOptions{count: 2, exec: "x"}, "id")
	if code, silent := exitCode(err); code != 130 || !silent {
		t.Errorf("exit code %d, %v", code, err)
	}
	if got, want := out.String(), strings.Repeat("group true signals 1\n", 2); got != want {
		t.Errorf("%q, not %q", got, want)
	}
}

// After a signal no more clones are started.
func TestASignalEndsTheStartOfClones(t *testing.T) {
	a, dir := clonesOf(t, io.Discard)
	go interruptOnce(t.Context(), dir, 1)
	const count = clonesAtOnce + 8
	err := a.startClones(t.Context(), &cloneOptions{count: count, exec: "x"}, "id")
	if code, _ := exitCode(err); code != 130 {
		t.Errorf("exit code %d, %v", code, err)
	}
	if l, err := os.ReadDir(dir); err != nil || len(l) > clonesAtOnce {
		t.Errorf("%d were started, %v", len(l), err)
	}
}
