package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/logs"
	"github.com/fcvm/fcvm/internal/store"
	"github.com/fcvm/fcvm/internal/vm"
)

// written is one thing that a container wrote.
type written struct {
	stream logs.Stream
	text   string
}

// createLogged makes a VM whose container writes to a log.
func (h *host) createLogged(name string, texts ...written) *store.VM {
	h.t.Helper()
	spec := defaultSpec()
	spec.Logs = vm.LogsBoth
	v := h.create(name, spec)
	h.write(v, texts...)
	return v
}

func (h *host) write(v *store.VM, texts ...written) {
	h.t.Helper()
	if len(texts) == 0 {
		return
	}
	w, err := logs.Create(v.Dir().ContainerLog(), logs.MinLimit)
	for _, s := range texts {
		if err == nil {
			_, err = w.Stream(s.stream).Write([]byte(s.text))
		}
	}
	if err := errors.Join(err, w.Close()); err != nil {
		h.t.Fatal(err)
	}
}

func TestLogsKeepTheStreamsApart(t *testing.T) {
	h := newHost(t)
	v := h.createLogged("job")
	if out := h.ok("logs", "job"); out != "" {
		t.Errorf("a log that is not there yet: %q", out)
	}
	h.write(v, written{logs.Stdout, "one\x00\n"}, written{logs.Stderr, "two\n"}, written{logs.Stdout, "three"})
	code, out, errs := h.fcvm("logs", "job")
	if code != 0 || out != "one\x00\nthree" || errs != "two\n" {
		t.Errorf("code %d, stdout %q, stderr %q", code, out, errs)
	}
	h.create("silent", defaultSpec())
	code, _, errs = h.fcvm("logs", "silent")
	if code != exitFailed || !strings.Contains(errs, "run it with --logs both") {
		t.Errorf("a VM without a log: code %d, stderr %q", code, errs)
	}
}

func TestLogsOfWhatIsWanted(t *testing.T) {
	h := newHost(t)
	v := h.createLogged("job", written{logs.Stdout, "1\n2"}, written{logs.Stderr, "e1\ne2"}, written{logs.Stdout, "2\n"},
		written{logs.Stderr, "e2\n"}, written{logs.Stdout, "3"})
	for tail, want := range map[string][2]string{
		"all": {"1\n22\n3", "e1\ne2e2\n"}, "0": {"", ""}, "1": {"3", ""}, "2": {"3", "e2e2\n"}, "3": {"3", "e1\ne2e2\n"},
		"4": {"22\n3", "e1\ne2e2\n"}, "99": {"1\n22\n3", "e1\ne2e2\n"}, "-1": {"1\n22\n3", "e1\ne2e2\n"},
	} {
		if code, out, errs := h.fcvm("logs", "--tail", tail, "job"); code != 0 || out != want[0] || errs != want[1] {
			t.Errorf("--tail %s: code %d, stdout %q, stderr %q; want %q", tail, code, out, errs, want)
		}
	}
	stamp := regexp.MustCompile(`(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(Z|[+-]\d\d:\d\d) `)
	code, out, errs := h.fcvm("logs", "-t", "job")
	if code != 0 || len(stamp.FindAllString(out, -1)) != 3 || len(stamp.FindAllString(errs, -1)) != 2 ||
		stamp.ReplaceAllString(out, "") != "1\n22\n3" || stamp.ReplaceAllString(errs, "") != "e1\ne2e2\n" {
		t.Errorf("--timestamps: code %d, stdout %q, stderr %q", code, out, errs)
	}

	time.Sleep(10 * time.Millisecond)
	between := time.Now().Format(time.RFC3339Nano)
	time.Sleep(10 * time.Millisecond)
	h.write(v, written{logs.Stdout, "\nlate\n"})
	if out := h.ok("logs", "--since", between, "job"); out != "\nlate\n" {
		t.Errorf("--since: %q", out)
	}
	if _, out, _ := h.fcvm("logs", "--until", between, "job"); out != "1\n22\n3" {
		t.Errorf("--until: %q", out)
	}
	if out := h.ok("logs", "--since", between, "--tail", "1", "job"); out != "late\n" {
		t.Errorf("--since and --tail: %q", out)
	}
	for _, args := range [][]string{{"--tail", "x"}, {"--since", "noon"}, {"--since", "-1"}, {"--since", "2026-01-02T"}, {"--until", "2026-13-01"}, {"--console", "--since", "1m"}} {
		if code, out, errs := h.fcvm(append(append([]string{"logs"}, args...), "job")...); code != exitFailed || out != "" || !strings.Contains(errs, strings.TrimLeft(args[0], "-")) {
			t.Errorf("%q: code %d, stdout %q, stderr %q", args, code, out, errs)
		}
	}
}

func TestTimes(t *testing.T) {
	now := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	at := func(hour, minute, sec, nsec int, loc *time.Location) time.Time {
		return time.Date(2024, 1, 2, hour, minute, sec, nsec, loc)
	}
	plus2 := time.FixedZone("", 2*3600)
	for s, want := range map[string]time.Time{
		"":                               {},
		"10m":                            now.Add(-10 * time.Minute),
		"-10m":                           now.Add(-10 * time.Minute),
		"1700000000":                     time.Unix(1700000000, 0),
		"1700000000.5":                   time.Unix(1700000000, 5e8),
		"2024-01-02":                     at(0, 0, 0, 0, time.Local),
		"2024-01-02T15":                  at(15, 0, 0, 0, time.Local),
		"2024-01-02T15:04":               at(15, 4, 0, 0, time.Local),
		"2024-01-02 15:04":               at(15, 4, 0, 0, time.Local),
		"2024-01-02T15:04:05":            at(15, 4, 5, 0, time.Local),
		"2024-01-02T15:04:05.000000006":  at(15, 4, 5, 6, time.Local),
		"2024-01-02Z":                    at(0, 0, 0, 0, time.UTC),
		"2024-01-02+02:00":               at(0, 0, 0, 0, plus2),
		"2024-01-02T15Z":                 at(15, 0, 0, 0, time.UTC),
		"2024-01-02T15:04+02:00":         at(15, 4, 0, 0, plus2),
		"2024-01-02T15:04:05Z":           at(15, 4, 5, 0, time.UTC),
		"2024-01-02T15:04:05.006+02:00":  at(15, 4, 5, 6e6, plus2),
		"2024-01-02T15:04:05.000000006Z": at(15, 4, 5, 6, time.UTC),
	} {
		if got, err := parseTime("--since", s, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v, want %v", s, got, err, want)
		}
	}
}

// lockedBuffer can be looked at while a command writes to it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *lockedBuffer) await(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(l.String(), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %q in %.200q", text, l.String())
		}
	}
}

// A follower sees what a VM writes over its restarts and over the log's
// segments, and ends with the VM.
func TestLogsFollowUntilTheVMHasEnded(t *testing.T) {
	h := newHost(t)
	v := h.createLogged("job", written{logs.Stdout, "old\n"}, written{logs.Stdout, "last\n"})
	out := new(lockedBuffer)
	h.stdout = out
	codes := make(chan int, 1)
	go func() {
		code, _, _ := h.fcvm("logs", "-f", "--tail", "1", "job")
		codes <- code
	}()
	out.await(t, "last\n")
	const restarts = 20
	var want strings.Builder
	want.WriteString("last\n")
	for i := range restarts {
		text := fmt.Sprintf("%d %s\n", i, strings.Repeat("x", 60<<10)) // more than the log keeps, in all
		want.WriteString(text)
		h.write(v, written{logs.Stdout, text})
		out.await(t, text)
	}
	h.write(v, written{logs.Stdout, "bye\n"})
	h.end(v, 0)
	select {
	case code := <-codes:
		if code != 0 || out.String() != want.String()+"bye\n" {
			t.Errorf("code %d, %d bytes; want %d", code, len(out.String()), want.Len()+4)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the follower does not end")
	}
}

func TestLogsUntilEndsAFollower(t *testing.T) {
	h := newHost(t)
	h.createLogged("job", written{logs.Stdout, "now\n"})
	until := time.Now().Add(300 * time.Millisecond)
	if out := h.ok("logs", "-f", "--until", until.Format(time.RFC3339Nano), "job"); out != "now\n" || time.Now().Before(until) {
		t.Errorf("%q at %s, to end at %s", out, time.Now(), until)
	}
}

// writerFunc is a stdout that does something when it is written to.
type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// onFirst is a stdout that has something done when it is first written to, which
// is after a follower's first look.
func onFirst(out *strings.Builder, do func()) writerFunc {
	return func(p []byte) (int, error) {
		if out.Len() == 0 {
			do()
		}
		return out.Write(p)
	}
}

// writeAt writes to a log as if it were another time.
func writeAt(t *testing.T, v *store.VM, at time.Time, text string) {
	t.Helper()
	line, err := json.Marshal(logs.Entry{Time: at, Stream: logs.Stdout, Data: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(v.Dir().ContainerLog(), os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.Write(append(line, '\n'))
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Error(err)
	}
}

// What was written just before the time is up is shown, too.
func TestLogsUntilShowsAllThatWasWrittenByThen(t *testing.T) {
	h := newHost(t)
	v := h.createLogged("job", written{logs.Stdout, "now\n"})
	until := time.Now()
	var out strings.Builder
	h.stdout = onFirst(&out, func() { writeAt(t, v, until, "late\n") })
	if h.ok("logs", "-f", "--tail", "1", "--until", until.Format(time.RFC3339Nano), "job"); out.String() != "now\nlate\n" {
		t.Errorf("%q", out.String())
	}
}

// What comes while somebody follows is new, even if the clock was set back.
func TestLogsSinceWhileTheClockIsSetBack(t *testing.T) {
	h := newHost(t)
	since := time.Now()
	v := h.createLogged("job", written{logs.Stdout, "now\n"})
	var out strings.Builder
	h.stdout = onFirst(&out, func() {
		writeAt(t, v, since.Add(-time.Hour), "back\n")
		h.end(v, 0)
	})
	if h.ok("logs", "-f", "--tail", "1", "--since", since.Format(time.RFC3339Nano), "job"); out.String() != "now\nback\n" {
		t.Errorf("%q", out.String())
	}
}

func TestLogsOfWhatIsBroken(t *testing.T) {
	h := newHost(t)
	v := h.createLogged("job", written{logs.Stdout, "one\n"})
	path := v.Dir().ContainerLog()
	whole, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, append([]byte("\x1b[2J\n"), whole...), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	code, out, errs := h.fcvm("logs", "job")
	if code != exitFailed || out != "one\n" || !strings.Contains(errs, "1 of its lines are broken") {
		t.Errorf("a broken line: code %d, stdout %q, stderr %q", code, out, errs)
	}
	if err := errors.Join(os.WriteFile(path, whole, 0o600), os.Truncate(v.Dir().Record(), 20)); err != nil {
		t.Fatal(err)
	}
	code, out, errs = h.fcvm("logs", v.Record().ID)
	if code != exitFailed || out != "one\n" || !strings.Contains(errs, "record is broken") {
		t.Errorf("a broken record: code %d, stdout %q, stderr %q", code, out, errs)
	}
}

func TestLogsOfTheConsole(t *testing.T) {
	h := newHost(t)
	v := h.create("box", defaultSpec())
	if out := h.ok("logs", "--console", "box"); out != "" {
		t.Errorf("a console that is not there yet: %q", out)
	}
	if err := os.WriteFile(v.Dir().Console(), []byte(strings.Repeat("boot\n", 200_000)+"login:\r\nend"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := h.ok("logs", "--console", "--tail", "2", "box"); out != "login:\r\nend" {
		t.Errorf("--tail 2: %q", out)
	}
	if err := logs.Trim(v.Dir().Console(), 8192); err != nil {
		t.Fatal(err)
	}
	if out := h.ok("logs", "--console", "box"); len(out) > 3*8192 || !strings.HasSuffix(out, "boot\nlogin:\r\nend") || strings.Contains(out, "\x00") {
		t.Errorf("a console that was trimmed: %d bytes, %.20q", len(out), out)
	}
	out := new(lockedBuffer)
	h.stdout = out
	codes := make(chan int, 1)
	go func() {
		code, _, _ := h.fcvm("logs", "--console", "-f", "-n", "1", "box")
		codes <- code
	}()
	out.await(t, "end")
	f, err := os.OpenFile(v.Dir().Console(), os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.WriteString("more")
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	out.await(t, "more")
	h.end(v, 0)
	if code := <-codes; code != 0 || out.String() != "endmore" {
		t.Errorf("code %d, %q", code, out.String())
	}
}
