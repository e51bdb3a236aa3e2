package e2e

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/fcvm/fcvm/test/images"
)

func TestWrongInputs(t *testing.T) {
	unauthorized := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
	}))
	defer unauthorized.Close()
	registry := httptest.NewServer(http.NotFoundHandler())
	defer registry.Close()
	host := func(s *httptest.Server) string { return strings.TrimPrefix(s.URL, "http://") }
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nowhere := closed.Addr().String()
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	busybox := archive(t, "busybox")

	tests := []struct {
		name string
		args []string
		want []string
	}{
		{"no image given", nil, []string{"image"}},
		{"no such archive", []string{"oci-archive:/no/such.tar"}, []string{"/no/such.tar", "no such"}},
		{"no such image", []string{host(registry) + "/none:1"}, []string{"none:1", "no such image"}},
		{"no such registry", []string{nowhere + "/x"}, []string{nowhere, "registry"}},
		{"no such host", []string{"registry.invalid/x"}, []string{"registry.invalid", "registry cannot be used"}},
		{"unauthorized", []string{host(unauthorized) + "/x"}, []string{"login"}},
		{"bad reference", []string{"UPPER/case"}, []string{"UPPER/case", "invalid image reference"}},
		{"too little memory", []string{"--mem", "1", busybox}, []string{"--mem 1", "128"}},
		{"no CPU", []string{"--cpu", "0", busybox}, []string{"--cpu 0"}},
		{"bad init", []string{"--init", "upstart", busybox}, []string{"upstart", "systemd"}},
		{"bad driver", []string{"--vmm", "xen", busybox}, []string{"xen", "qemu"}},
		{"bad name", []string{"--name", "a/b", busybox}, []string{"a/b"}},
		{"bad port", []string{"-p", "80:x", busybox}, []string{"80:x"}},
		{"bad network", []string{"--network", "token-ring", busybox}, []string{"token-ring"}},
		{"bad flag", []string{"--frobnicate", busybox}, []string{"--frobnicate"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			fcvm(t, append([]string{"run"}, tt.args...)...).wantError(t, 125, tt.want...)
		})
	}
}

func TestImageWithoutCommand(t *testing.T) {
	path := images.Scratch(t, images.Config{})
	fcvm(t, "run", "oci-archive:"+path).wantError(t, 125, "no command")
}

func TestImageForAnotherArchitecture(t *testing.T) {
	other := "arm64"
	if runtime.GOARCH == other {
		other = "amd64"
	}
	path := images.Scratch(t, images.Config{Architecture: other, Cmd: []string{"/x"}})
	fcvm(t, "run", "oci-archive:"+path).wantError(t, 125, other, runtime.GOARCH)
}

func TestNotSetUp(t *testing.T) {
	cmd := command(t.Context(), "run", archive(t, "busybox"), "true")
	cmd.Env = append(cmd.Env, "FCVM_DATA_DIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 125 || !strings.Contains(string(out), "fcvm setup") {
		t.Errorf("%v; want exit code 125 and the command to run:\n%s", err, out)
	}
}

func TestUnreadableDataDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"ls"}, {"run", archive(t, "busybox"), "true"}} {
		cmd := command(t.Context(), args...)
		cmd.Env = append(cmd.Env, "FCVM_DATA_DIR="+file)
		out, _ := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != 125 || !strings.Contains(string(out), file) {
			t.Errorf("fcvm %q: exit code %d; want 125 and the directory's name:\n%s", args, cmd.ProcessState.ExitCode(), out)
		}
	}
}

// TestNoSpace has the data directory on a tmpfs that is too small for an
// image, in namespaces of the test's own.
func TestNoSpace(t *testing.T) {
	dir := t.TempDir()
	const script = `set -e
dir=$1; shift
mount -t tmpfs -o size=2m none "$dir"
cp "$FCVM_DATA_DIR/setup.json" "$dir/"
for d in kernels roots bin; do [ ! -e "$FCVM_DATA_DIR/$d" ] || ln -s "$FCVM_DATA_DIR/$d" "$dir/$d"; done
FCVM_DATA_DIR=$dir exec "$@"`
	ctx, cancel := context.WithTimeout(t.Context(), runTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh",
		dir, env.fcvm, "run", archive(t, "python3"), "python3", "--version")
	cmd.Env = append(os.Environ(), "FCVM_DATA_DIR="+env.data, "FCVM_RUNTIME_DIR="+env.runtime)
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "unshare failed") {
		t.Skip("this host has no user namespaces")
	}
	if cmd.ProcessState.ExitCode() != 125 || !strings.Contains(string(out), "no space left") {
		t.Errorf("%v; want exit code 125 and a word about the full disk:\n%s", err, out)
	}
}

// TestBootTimeout gives a guest no time to come up.
func TestBootTimeout(t *testing.T) {
	r := run(t, []string{"--no-cache", "--boot-timeout", "1s"}, "busybox", "true")
	r.wantError(t, 125, "did not come up", "--boot-timeout")
}
