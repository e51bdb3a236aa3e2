package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/vm"
)

func TestLsListsWhatRunsAndAllWhenAsked(t *testing.T) {
	h := newHost(t)
	if out := h.ok("ls"); strings.Count(out, "\n") != 1 || !strings.HasPrefix(out, "ID ") {
		t.Errorf("an empty list:\n%s", out)
	}
	if out := h.ok("ls", "--format", "json"); out != "[]\n" {
		t.Errorf("an empty list as JSON: %q", out)
	}
	spec := defaultSpec()
	spec.Labels = map[string]string{"k": "v"}
	live, ended := h.create("live", spec), h.create("gone", spec)
	h.end(ended, 7)

	out := h.ok("ls")
	if !strings.Contains(out, live.Record().ID) || strings.Contains(out, "gone") {
		t.Errorf("ls:\n%s", out)
	}
	out = h.ok("ls", "-a")
	if !strings.Contains(out, "live") || !strings.Contains(out, "exited (7)") {
		t.Errorf("ls -a:\n%s", out)
	}
	if got, want := h.ok("ps", "-q"), live.Record().ID+"\n"; got != want {
		t.Errorf("ls -q: %q, want %q", got, want)
	}
	got := h.ok("ls", "-a", "--format", `{{.Name}}={{.Status}} {{index .Labels "k"}} {{json .Ports}}`)
	if want := "live=created v []\ngone=exited v []\n"; got != want {
		t.Errorf("ls by template: %q, want %q", got, want)
	}
	var items []vmItem
	if err := json.Unmarshal([]byte(h.ok("ls", "-a", "--format", "json")), &items); err != nil {
		t.Fatal(err)
	}
	h.create("plain", defaultSpec())
	if out := h.ok("ls", "--format", "json", "--filter", "name=plain"); strings.Contains(out, "null") || !strings.Contains(out, `"labels": {}`) {
		t.Errorf("what there is none of, as JSON: %s", out)
	}
	if len(items) != 2 || items[0].PID != os.Getpid() || items[1].PID != 0 || *items[1].ExitCode != 7 {
		t.Errorf("ls as JSON: %+v", items)
	}
}

func TestLsShowsABrokenRecordInsteadOfFailing(t *testing.T) {
	h := newHost(t)
	v := h.create("x", defaultSpec())
	if err := os.WriteFile(h.layout().VM(v.Record().ID).Record(), []byte("{\x1b"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := h.ok("ls")
	if !strings.Contains(out, v.Record().ID) || !strings.Contains(out, "broken: ") || strings.Contains(out, "\x1b") {
		t.Errorf("ls:\n%q", out)
	}
	h.create("whole", defaultSpec())
	code, out, errs := h.fcvm("inspect", v.Record().ID, "whole")
	var found []vmDetails
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		t.Fatal(err)
	}
	if code != exitFailed || !strings.Contains(errs, "broken") || len(found) != 2 ||
		found[0].Status != statusBroken || !strings.Contains(found[0].Error, "record is broken") || found[1].Name != "whole" {
		t.Errorf("inspect: code %d, %+v, %q", code, found, errs)
	}
}

func TestLsFilters(t *testing.T) {
	h := newHost(t)
	spec := func(image string, labels map[string]string) vm.Spec {
		s := defaultSpec()
		s.Image, s.Labels = image, labels
		return s
	}
	web := h.create("web", spec("nginx:1", map[string]string{"app": "a", "tier": "front"}))
	db := h.create("db", spec("postgres", map[string]string{"app": "a"}))
	if err := db.Update(func(r *vm.Record) error { r.Health = vm.HealthUnhealthy; return nil }); err != nil {
		t.Fatal(err)
	}
	h.end(h.create("job", spec("alpine", nil)), 3)
	broken := h.create("broken", defaultSpec())
	if err := os.Truncate(broken.Dir().Record(), 0); err != nil {
		t.Fatal(err)
	}
	for filters, want := range map[string]string{
		"":                       "<broken> web db", // when it was made is not known
		"name=e":                 "web",
		"id=" + web.Record().ID:  "web",
		"name=web name=db":       "web db",
		"image=ng":               "web",
		"status=created":         "web db",
		"status=exited":          "job",
		"status=broken":          "<broken>",
		"exited=3":               "job",
		"exited=0":               "",
		"health=unhealthy":       "db",
		"health=none name=w":     "web",
		"label=app":              "web db",
		"label=app=a label=tier": "web",
		"label=app=b":            "",
		"driver=qemu":            "",
	} {
		args := []string{"ls", "--format", `{{or .Name "<broken>"}}`}
		for _, f := range strings.Fields(filters) {
			args = append(args, "--filter", f)
		}
		if got := strings.Join(strings.Fields(h.ok(args...)), " "); got != want {
			t.Errorf("filter %q: %q, want %q", filters, got, want)
		}
	}
	for _, f := range []string{"x", "x=y", "status=well", "name=", "exited=no", "health=ill"} {
		if code, out, errs := h.fcvm("ls", "--filter", f); code != exitFailed || out != "" || !strings.Contains(errs, "--filter") {
			t.Errorf("filter %q: code %d, stdout %q, stderr %q", f, code, out, errs)
		}
	}
}

func TestCompletionOfFiltersAndVMs(t *testing.T) {
	h := newHost(t)
	spec := defaultSpec()
	spec.Labels = map[string]string{"app": "web"}
	h.create("live", spec)
	h.end(h.create("gone", defaultSpec()), 0)
	broken := h.create("broken", defaultSpec())
	if err := os.Truncate(broken.Dir().Record(), 5); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"ls --filter st":       "status=",
		"ls --filter status=r": "status=running",
		"ls --filter label=":   "label=app=web",
		"ls --filter name=g":   "name=gone",
		"logs --tail ":         "all 10 100",
		"logs --console ":      "live gone",
		"logs ":                "",
		"inspect ":             "live gone",
		"inspect live ":        "gone",
		"inspect --format ":    "json",
		"rm ":                  "gone",
	} {
		typed := strings.Split(args, " ")
		var got []string
		_, out, _ := h.fcvm(append([]string{"__complete"}, typed...)...)
		for line := range strings.Lines(out) {
			if word, _, _ := strings.Cut(strings.TrimSpace(line), "\t"); word != "" && !strings.HasPrefix(word, ":") {
				got = append(got, word)
			}
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%q completes to %q, want %q", args, s, want)
		}
	}
}

func TestWrongTemplatesAreSaidBeforeAnythingIsDone(t *testing.T) {
	h := newHost(t)
	h.create("x", defaultSpec())
	for _, args := range [][]string{{"ls", "--format", "{{.Name"}, {"ls", "--format", "{{.Nonsense}}"}, {"version", "--format", "{{"}} {
		code, out, errs := h.fcvm(args...)
		if code != exitFailed || out != "" || !strings.HasPrefix(errs, "fcvm: invalid argument: --format: ") {
			t.Errorf("fcvm %q: code %d, stdout %q, stderr %q", args, code, out, errs)
		}
	}
}

func TestInspectFindsByNameIDAndPrefix(t *testing.T) {
	h := newHost(t)
	v := h.create("box", defaultSpec())
	id := v.Record().ID
	for _, ref := range []string{"box", id, id[:6]} {
		var recs []vm.Record
		if err := json.Unmarshal([]byte(h.ok("inspect", ref)), &recs); err != nil {
			t.Fatal(err)
		}
		if len(recs) != 1 || recs[0].ID != id || recs[0].Spec.Image != "img" {
			t.Errorf("inspect %s: %+v", ref, recs)
		}
	}
	if got := h.ok("inspect", "--format", "{{.Spec.CPUs}}", "box"); got != fmt.Sprintln(defaultCPUs) {
		t.Errorf("inspect by template: %q", got)
	}
	code, out, errs := h.fcvm("inspect", "--format", "{{.Name}}", "nope", "box")
	if code != exitFailed || out != "box\n" || !strings.Contains(errs, `no such VM: "nope"`) {
		t.Errorf("inspect of one that is not there: code %d, stdout %q, stderr %q", code, out, errs)
	}
}

func TestRmRemovesWhatHasEndedOnly(t *testing.T) {
	h := newHost(t)
	h.create("live", defaultSpec())
	for _, name := range []string{"a", "b"} {
		h.end(h.create(name, defaultSpec()), 0)
	}
	code, out, errs := h.fcvm("rm", "a", "live", "nope", "b")
	if code != exitFailed || out != "a\nb\n" {
		t.Errorf("code %d, stdout %q", code, out)
	}
	if !strings.Contains(errs, "remove live: VM is running; stop it first, or remove it with: fcvm rm -f live\n") ||
		!strings.Contains(errs, `no such VM: "nope"`) {
		t.Errorf("stderr %q", errs)
	}
	if out := h.ok("ls", "-a", "--format", "{{.Name}}"); out != "live\n" {
		t.Errorf("left: %q", out)
	}
}

func TestAgeIsShort(t *testing.T) {
	now := time.Unix(1e9, 0)
	for d, want := range map[time.Duration]string{
		-time.Second: "0 seconds", 0: "0 seconds", 100 * time.Second: "100 seconds", 10 * time.Minute: "10 minutes",
		5 * time.Hour: "5 hours", 72 * time.Hour: "3 days",
	} {
		if got := age(now.Add(-d), now); got != want {
			t.Errorf("age(%s) = %q, want %q", d, got, want)
		}
	}
}

func TestExecNeedsAVMThatRuns(t *testing.T) {
	h := newHost(t)
	h.end(h.create("ended", defaultSpec()), 0)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"exec", "--guest", "ended", "true"}, "VM is not running: ended is exited"},
		{[]string{"exec", "--guest", "nope", "true"}, `no such VM: "nope"`},
		{[]string{"exec", "ended", "true"}, "VM is not running: ended is exited"},
		{[]string{"exec", "-d", "-i", "ended", "true"}, "leave out -i or -d"},
		{[]string{"exec", "-e", "=x", "ended", "true"}, "has no name"},
		{[]string{"exec", "--guest", "ended"}, "no command given"},
	} {
		code, out, errs := h.fcvm(c.args...)
		if code != exitFailed || out != "" || !strings.Contains(errs, c.want) {
			t.Errorf("fcvm %q: code %d, stdout %q, stderr %q; want %q", c.args, code, out, errs, c.want)
		}
	}
}

// The listing says what is wrong with a record, not only where it lies.
func TestABrokenRecordIsListedWithItsError(t *testing.T) {
	h := newHost(t)
	v := h.create("broken", defaultSpec())
	for text, want := range map[string]string{
		"garbage":                "broken: invalid character 'g' looking for beginning of value",
		"":                       "broken: unexpected end of JSON input",
		`{"schema":99,"id":"x"}`: "broken: has schema 99, this fcvm knows ",
	} {
		if err := os.WriteFile(v.Dir().Record(), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out := h.ok("ls"); !strings.Contains(out, want) {
			t.Errorf("%q is listed as\n%s, without %q", text, out, want)
		}
	}
}

// Flags that Docker has, too.
func TestShortFlagsAndEnvFiles(t *testing.T) {
	h := newHost(t)
	h.running("live")
	h.end(h.create("gone", defaultSpec()), 0)
	if out := h.ok("inspect", "-f", "{{.Name}}", "live"); out != "live\n" {
		t.Errorf("inspect -f: %q", out)
	}
	if out := h.ok("rm", "-v", "gone"); out != "gone\n" {
		t.Errorf("rm -v: %q", out)
	}
	code, _, errs := h.fcvm("exec", "--env-file", writeEnvFile(t, "A B=1\n"), "live", "true")
	if code != exitFailed || !strings.Contains(errs, `line 1: variable "A B"`) {
		t.Errorf("exec --env-file: code %d, %s", code, errs)
	}
}

func TestShownPorts(t *testing.T) {
	for _, tc := range []struct{ ports, want []string }{
		{nil, nil},
		{[]string{"0.0.0.0:8080->80/tcp", "[::]:8080->80/tcp"}, []string{"0.0.0.0:8080->80/tcp"}},
		{[]string{"[::]:8080->80/tcp", "[::1]:81->80/tcp"}, []string{"[::]:8080->80/tcp", "[::1]:81->80/tcp"}},
		{[]string{"0.0.0.0:8080->80/tcp", "[::]:8080->81/tcp", "[::]:8080->80/udp"}, []string{"0.0.0.0:8080->80/tcp", "[::]:8080->81/tcp", "[::]:8080->80/udp"}},
	} {
		if got := shownPorts(tc.ports); !slices.Equal(got, tc.want) {
			t.Errorf("%q: %q, want %q", tc.ports, got, tc.want)
		}
	}
}
