package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/paths"
)

// patternProgram keeps a pattern in memory and on disk, and writes to the disk
// all the time. For each SIGUSR1 it checks both, writes what it has found to
// /result, and fills both with another pattern.
const patternProgram = `
import hashlib, os, signal, sys, threading
size = int(sys.argv[1]) << 20
chunk = 1 << 20
def fill():
    seed = os.urandom(32)
    for i in range(0, size, chunk):
        mem[i:i+chunk] = hashlib.shake_128(seed + i.to_bytes(8, "big")).digest(64) * (chunk // 64)
    with open("/pattern", "wb") as f:
        f.write(mem)
        f.flush(); os.fsync(f.fileno())
    return hashlib.sha256(mem).hexdigest()
def check(*_):
    global want
    disk = hashlib.sha256()
    with open("/pattern", "rb") as f:
        while b := f.read(chunk):
            disk.update(b)
    found = [hashlib.sha256(mem).hexdigest() == want, disk.hexdigest() == want]
    want = fill()
    with open("/result.new", "w") as f:
        f.write(f"memory {found[0]}, disk {found[1]}, then {want}\n")
    os.rename("/result.new", "/result")
def busy():
    n = 0
    while True:
        n += 1
        with open(f"/busy-{n % 16}", "wb") as f:
            f.write(os.urandom(256 << 10))
            f.flush(); os.fsync(f.fileno())
mem = bytearray(size)
want = fill()
signal.signal(signal.SIGUSR1, check)
threading.Thread(target=busy, daemon=True).start()
print("up", flush=True)
while True:
    signal.pause()
`

// askPattern has the program look, and waits for what it finds. The image has
// Python and a shell, and nothing else.
const askPattern = `
import os, signal, time
if os.path.exists("/result"): os.remove("/result")
os.kill(1, signal.SIGUSR1)
while not os.path.exists("/result"): time.sleep(0.1)
print(open("/result").read(), end="")
`

// TestClonesKeepTheirMemoryAndDisk: $FCVM_TEST_CLONES clones at once of a guest
// that holds $FCVM_TEST_PATTERN MiB of a pattern in memory and on disk, and writes
// all the while. Each finds both as they were, writes its own over them, twice,
// and sees nobody else's. So does the original.
func TestClonesKeepTheirMemoryAndDisk(t *testing.T) {
	clones, mib := rounds(t, "FCVM_TEST_CLONES", 2), rounds(t, "FCVM_TEST_PATTERN", 32)
	memory := fmt.Sprint(384 + 2*mib)
	original := detach(t, []string{"--name", "pattern", "--mem", memory, "--wait-ready", "log=^up,timeout=15m"}, "python3", "python3", "-c", patternProgram, fmt.Sprint(mib))
	snapshotOf(t, "pattern", "patterned")
	ids := append(clone(t, "-n", fmt.Sprint(clones), "--rm=false", "--snapshot", "patterned"), original)
	for range 2 {
		asked := make([]*vmProcess, len(ids))
		for i, id := range ids {
			asked[i] = start(t, "exec", id, "python3", "-c", askPattern)
		}
		seen := map[string]string{}
		for i, p := range asked {
			// All hash at once, on as many CPUs as there are.
			p.waitFor(t, runTimeout*time.Duration(1+clones*mib/256))
			found, rest, _ := strings.Cut(strings.TrimSpace(p.out.String()), ", then ")
			if found != "memory True, disk True" {
				t.Errorf("%s: %q; stderr:\n%s", ids[i], p.out.String(), p.errs.String())
			}
			if other, ok := seen[rest]; ok {
				t.Errorf("%s has made the same pattern as %s: the random numbers are the same", ids[i], other)
			}
			seen[rest] = ids[i]
		}
	}
	for _, id := range ids {
		if r := fcvm(t, "exec", "--guest", id, "dmesg"); r.code != 0 || strings.Contains(r.stdout, "EXT4-fs error") || strings.Contains(r.stdout, "I/O error") {
			t.Errorf("%s: the file system is not well: exit code %d\n%s", id, r.code, r.stdout)
		}
	}
	// And as e2fsck finds it, when the guest has let go of it.
	if r := fcvm(t, append([]string{"stop", "--time", "0"}, ids...)...); r.code != 0 {
		t.Error(r.stderr)
	}
	layout := paths.Layout{Data: env.data}
	for _, id := range ids {
		disk := filepath.Join(string(layout.VM(id)), paths.ScratchName)
		check := exec.Command("sh", "-c", `PATH=$PATH:/usr/sbin:/sbin exec e2fsck -f -n "$1"`, "sh", disk) // a user's PATH has no sbin
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("the disk of %s: %v\n%s", id, err, out)
		}
	}
}
