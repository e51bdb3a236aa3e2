package cli

import (
	"context"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/control"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/supervisor"
	"github.com/fcvm/fcvm/internal/vm"
)

// says fails the test unless a command fails with this message, in which .* may
// stand for what differs each time.
func (h *host) says(want string, args ...string) {
	h.t.Helper()
	code, out, errs := h.fcvm(args...)
	if code != exitFailed || out != "" || !regexp.MustCompile("^(?s:"+want+")\n$").MatchString(errs) {
		h.t.Errorf("fcvm %q: code %d, stdout %q, stderr\n%swant\n%s", args, code, out, errs, want)
	}
}

func TestNoSuchVM(t *testing.T) {
	h := newHost(t)
	for _, command := range []string{"inspect", "logs", "stop", "kill", "wait", "pause", "resume", "rm", "update --balloon=1", "exec", "rename"} {
		args := append(strings.Fields(command), "nope")
		if command == "exec" || command == "rename" {
			args = append(args, "x")
		}
		code, _, errs := h.fcvm(args...)
		if want := "fcvm: no such VM: \"nope\" (list them with: fcvm ls -a)\n"; code != exitFailed || errs != want {
			t.Errorf("fcvm %q: code %d, stderr %q, want %q", args, code, errs, want)
		}
	}
}

// A VM that has been removed a moment ago was not mistyped.
func TestVMThatIsGone(t *testing.T) {
	h := newHost(t)
	v := h.running("web")
	id := v.Record().ID
	v.Tell("stopped", "the container ended with code 3")
	if err := v.Remove(); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"web", id} {
		h.says(`fcvm: no such VM: "`+ref+`": VM `+id+` was removed \d+s ago: the container ended with code 3`, "stop", ref)
	}
	h.create("web", defaultSpec()) // another one
	h.ok("inspect", "web")
}

func TestAmbiguousPrefix(t *testing.T) {
	h := newHost(t)
	// Ids are random: with 17 of them two begin alike.
	byDigit := map[byte][]string{}
	var digit byte
	for i := 0; digit == 0; i++ {
		v := h.running(fmt.Sprintf("vm%d", i))
		id := v.Record().ID
		byDigit[id[0]] = append(byDigit[id[0]], id+" ("+v.Record().Name+")")
		if len(byDigit[id[0]]) == 2 {
			digit = id[0]
		}
	}
	prefix, both := string(digit), byDigit[digit]
	want := `fcvm: ambiguous VM id: "` + prefix + `" fits ` + regexp.QuoteMeta(strings.Join(both, ", ")) + "\nhint: give more of the id, or the name"
	for _, command := range []string{"inspect", "stop", "kill", "wait", "pause", "logs", "rm", "rm -f"} {
		args := append(strings.Fields(command), prefix)
		if command == "inspect" { // which prints an empty list
			args = append(args, "--format", "{{.ID}}")
		}
		h.says(want, args...)
	}
}

func TestNotRunning(t *testing.T) {
	h := newHost(t)
	h.end(h.create("done", defaultSpec()), 0)
	const why = `VM is not running: done is exited \(test\)` + "\nhint: fcvm ls lists what runs, .*"
	h.says("fcvm: pause done: "+why, "pause", "done")
	h.says("fcvm: resume done: "+why, "resume", "done")
	h.says("fcvm: kill done: "+why, "kill", "-s", "HUP", "done")
	h.says("fcvm: update done: "+why, "update", "--balloon", "1", "done")
	h.says("fcvm: "+why, "exec", "done", "true")
	h.says("fcvm: "+why, "exec", "--guest", "done", "true")
	h.says("fcvm: "+why, "cp", "done:/x", "-")

	broken := h.running("broken")
	if err := broken.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(broken.Dir().Record(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	id := broken.Record().ID
	h.says("fcvm: pause "+id+": VM is not running: "+id+" is not known: record is broken: .*", "pause", id)
}

func TestNameTaken(t *testing.T) {
	h := newHost(t)
	h.env["FCVM_RUNTIME_DIR"] = t.TempDir()
	live := h.running("live").Record().ID
	ended := h.create("ended", defaultSpec())
	h.end(ended, 0)
	h.run = func(_ context.Context, d supervisor.Deps, o supervisor.Options) (supervisor.Result, error) {
		_, err := d.Store.Create(o.Name, o.Spec)
		return supervisor.Result{}, err
	}
	h.says(`fcvm: name is taken: "live" belongs to VM `+live+` \(running\); choose another, or end and remove that VM with: fcvm rm -f live`,
		"run", "--name", "live", "img")
	taken := `fcvm: name is taken: "ended" belongs to VM ` + ended.Record().ID + ` \(exited\); remove it with: fcvm rm ended`
	h.says(taken, "run", "--name", "ended", "img")
	other := h.create("other", defaultSpec())
	h.end(other, 0)
	h.says(taken, "rename", "other", "ended")
}

// A VM that ends, and is removed, while it is asked to stop has stopped.
func TestStopOfAVMThatIsGone(t *testing.T) {
	h := newHost(t)
	h.end(h.create("ended", defaultSpec()), 0)
	if out := h.ok("stop", "ended"); out != "ended\n" {
		t.Errorf("stop of one that has ended: %q", out)
	}
	for name, end := range map[string]func(*store.VM) error{
		"removed": func(v *store.VM) error { return v.Remove() },
		"kept": func(v *store.VM) error {
			if err := v.Move(vm.StatusExited, "by itself"); err != nil {
				return err
			}
			return v.Close()
		},
	} {
		v := h.running(name)
		h.supervise(v, &fakeSupervisor{stop: func() error {
			if err := end(v); err != nil {
				t.Error(err)
			}
			return fmt.Errorf("%w: it has ended", vm.ErrNotRunning)
		}})
		if out := h.ok("stop", name); out != name+"\n" {
			t.Errorf("stop of one that ends meanwhile: %q", out)
		}
	}
	// Its supervisor goes while it is asked.
	v := h.running("going")
	l, err := net.Listen("unix", h.socket(v))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		if c, err := l.Accept(); err == nil {
			_ = c.Close()
		}
		_ = l.Close()
		_ = v.Remove()
	}()
	if out := h.ok("stop", "going"); out != "going\n" {
		t.Errorf("stop of one that is just going: %q", out)
	}
	lost := h.running("lost") // of this process: alive, but nobody serves its socket
	h.says("fcvm: pause lost: the VM's supervisor does not answer: .*\nhint: it has just ended, or is about to; fcvm ls -a tells", "pause", "lost")
	_ = lost.Close()
}

var _ control.VM = (*fakeSupervisor)(nil)
