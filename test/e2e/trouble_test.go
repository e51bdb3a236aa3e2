package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// inNamespace runs a shell script that may mount, with fcvm on its PATH and the
// tests' directories; $dir is an empty directory.
func inNamespace(t *testing.T, script string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*runTimeout)
	defer cancel()
	dir := t.TempDir()
	cmd := exec.CommandContext(ctx, "unshare", append([]string{
		"--user", "--map-root-user", "--mount", "--kill-child", "bash", "-c", "set -u; dir=$1; shift; " + script, "sh", dir,
	}, args...)...)
	cmd.Env = append(os.Environ(), "FCVM_DATA_DIR="+env.data, "FCVM_RUNTIME_DIR="+env.runtime,
		"PATH="+filepath.Dir(env.fcvm)+":"+os.Getenv("PATH"))
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "unshare failed") {
		t.Skip("this host has no user namespaces")
	}
	if err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
	return string(out)
}

func wantWords(t *testing.T, out string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(out, w) {
			t.Errorf("no %q in:\n%s", w, out)
		}
	}
}

// TestBrokenRecords damages the record of a VM that runs. The VM is not lost,
// nor are the others.
func TestBrokenRecords(t *testing.T) {
	id := detach(t, []string{"--name", "victim"}, "busybox", "sh", "-c", "echo hello; sleep 1000")
	path := filepath.Join(env.data, "vms", id, "state.json")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"emptied": "", "truncated": string(whole[:len(whole)/2]), "garbage": "\x00\x1b[2J\xff", "of a newer schema": `{"schema":99,"id":"` + id + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			r := fcvm(t, "ls")
			if r.code != 0 || !strings.Contains(r.stdout, id) || !strings.Contains(r.stdout, "broken: ") || strings.ContainsRune(r.stdout, 0x1b) {
				t.Errorf("ls: exit code %d, %q; stderr:\n%s", r.code, r.stdout, r.stderr)
			}
			r = fcvm(t, "inspect", id)
			r.wantError(t, 125, "record is")
			wantWords(t, r.stdout, `"status": "broken"`, id)
			fcvm(t, "logs", id).wantError(t, 125, "record is")
			fcvm(t, "rm", id).wantError(t, 125, "running")
			if r := fcvm(t, "system", "prune", "-af"); r.code != 0 || strings.Contains(r.stdout, id) {
				t.Errorf("prune: exit code %d, %s; stderr:\n%s", r.code, r.stdout, r.stderr)
			}
			if got, err := os.ReadFile(path); err != nil || string(got) != text {
				t.Errorf("the record was touched: %q, %v", got, err)
			}
		})
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	fcvm(t, "exec", "victim", "echo", "alive").want(t, 0, "alive\n")
	fcvm(t, "logs", "victim").want(t, 0, "hello\n")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fcvm(t, "stop", "--time", "0", id).want(t, 0, id+"\n") // its supervisor has it all in memory
	if s := status(t, "victim"); s.Status != "exited" {
		t.Errorf("after its end: %+v", s)
	}
}

// TestReadOnlyDataDirectory looks at what is there, and says why the rest
// cannot be done.
func TestReadOnlyDataDirectory(t *testing.T) {
	id := detach(t, []string{"--name", "still"}, "busybox", "echo", "hello")
	fcvm(t, "wait", "still").want(t, 0, "0\n")
	out := inNamespace(t, `
mount --bind "$FCVM_DATA_DIR" "$dir" && mount -o remount,ro,bind "$dir" || exit
export FCVM_DATA_DIR=$dir
for c in "ls -a" "inspect still" "logs still" "events --follow=false" "system df" "top --no-stream"; do
	fcvm $c >/dev/null || echo "FAILED: fcvm $c"
done
fcvm logs still
for c in "rm still" "rename still moved" "system prune -f" "run $1 true"; do
	fcvm $c; echo "code $?"
done
true`, archive(t, "busybox"))
	if strings.Contains(out, "FAILED") || strings.Contains(out, "code 0") {
		t.Errorf("output:\n%s", out)
	}
	wantWords(t, out, "hello\n", "read-only file system", "hint: the data directory is on a file system that is read-only")
	if s := status(t, id); s.Status != "exited" {
		t.Errorf("afterwards: %+v", s)
	}
}

// TestFullInMidRun fills the data directory while a container writes to its
// disk and to its log. The VM does not hang, everybody is told, the record says
// how it ended, and nothing is lost that was there before.
func TestFullInMidRun(t *testing.T) {
	out := inNamespace(t, `
mount -t tmpfs -o size=600m none "$dir" || exit
cp -a "$FCVM_DATA_DIR/kernels" "$FCVM_DATA_DIR/setup.json" "$dir/"
for d in roots bin images scratch; do [ ! -e "$FCVM_DATA_DIR/$d" ] || ln -s "$FCVM_DATA_DIR/$d" "$dir/$d"; done
export FCVM_DATA_DIR=$dir
fcvm run --vmm "$2" --name old --logs both "$1" echo kept
free=$(df --output=avail -B1M "$dir" | tail -n 1)
head -c $(((free - 60) * 1048576)) /dev/zero >"$dir/filler"
fcvm run --vmm "$2" --name full --logs both "$1" sh -c '
	echo before
	dd if=/dev/urandom of=/big bs=1M count=100 conv=fsync 2>/dev/null; echo "dd ended with $?"
	dd if=/dev/zero bs=64k count=200 2>/dev/null | tr "\0" x | fold; sleep 3; exit 5' >"$dir.out" 2>"$dir.err"
echo "run ended with $?"
wc -c <"$dir.out"; grep -v xxx "$dir.out"; cat "$dir.err"; rm -f "$dir.out" "$dir.err"
fcvm ls -a --format '{{.Name}} is {{.Status}} {{.ExitCode}}'
fcvm logs old; fcvm logs full 2>&1 | head -n 1
fcvm inspect --format 'lost {{gt .LogLost 0}}, {{range .Warnings}}{{.Reason}}{{end}}' full
fcvm run --vmm "$2" "$1" true; echo "another ended with $?"
rm "$dir/filler"
fcvm rm full && fcvm run --vmm "$2" "$1" echo works again; fcvm rm old
true`, archive(t, "busybox"), env.driver)
	wantWords(t, out,
		"before\ndd ended with 1\n", "run ended with 5\n", "is full: what the container writes", "bytes of the output are not in the log",
		"old is exited 0", "full is exited 5", "kept\nbefore\n", "lost true, the file system of ",
		"no space left", "another ended with 125", "works again\n")
}
