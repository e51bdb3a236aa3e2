package launch

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/vmm"
)

// envLauncher makes the test binary start a child and wait to be killed.
const envLauncher = "FCVM_TEST_LAUNCHER"

func TestMain(m *testing.M) {
	if os.Getenv(envLauncher) != "" {
		p, err := Direct{}.Launch(context.Background(), vmm.Command{Path: "/bin/sleep", Args: []string{"1000"}})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(p.PID())
		p.Wait()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestExit(t *testing.T) {
	for _, c := range []struct {
		script string
		want   vmm.Exit
	}{
		{"exit 0", vmm.Exit{Reason: "ended with status 0"}},
		{"exit 7", vmm.Exit{Code: 7, Reason: "ended with status 7"}},
		{"kill -9 $$", vmm.Exit{Code: -1, Signal: 9, Reason: "killed by SIGKILL"}},
		{"kill -SEGV $$", vmm.Exit{Code: -1, Signal: 11, Reason: "killed by SIGSEGV"}},
	} {
		p, err := Direct{}.Launch(t.Context(), vmm.Command{Path: "/bin/sh", Args: []string{"-c", c.script}})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // Wait may be called again
			if got := p.Wait(); got != c.want {
				t.Errorf("%s: %+v", c.script, got)
			}
		}
		if err := p.Signal(os.Kill); err != nil {
			t.Errorf("signal after the end: %v", err)
		}
	}
}

// The child has what the command says, and a session of its own.
func TestCommand(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	dir := t.TempDir()
	p, err := Direct{}.Launch(t.Context(), vmm.Command{
		Path: "/bin/sh", Args: []string{"-c", `cat; pwd; echo "$A $1"; ps -o sid= -p $$ >&3; echo $$ >&3`, "sh", "an argument"},
		Env: []string{"A=b", "PATH=/usr/bin:/bin"}, Dir: dir, Stdout: w, Stderr: w, Extra: []*os.File{w},
	})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	p.Wait()
	pid := strconv.Itoa(p.PID())
	if got, want := strings.Fields(string(out)), []string{dir, "b", "an", "argument", pid, pid}; strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("%q, not %q", got, want)
	}
}

func TestLaunchFails(t *testing.T) {
	if _, err := (Direct{}).Launch(t.Context(), vmm.Command{Path: "/nonexistent/vmm"}); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/nonexistent/vmm") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (Direct{}).Launch(ctx, vmm.Command{Path: "/bin/true"}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// SIGKILL of the launching process, which it cannot handle, ends the child.
func TestChildDiesWithParent(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), envLauncher+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	pid, perr := strconv.Atoi(strings.TrimSpace(line))
	if err = errors.Join(err, perr); err != nil {
		_ = cmd.Process.Kill()
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	for deadline := time.Now().Add(10 * time.Second); running(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatal("the child lives on")
		}
	}
}

// running reports whether a process runs; what nobody has waited for yet does
// not.
func running(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(after, "Z")
}
