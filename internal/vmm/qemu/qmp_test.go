package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/vmm"
)

const greeting = `{"QMP": {"version": {}, "capabilities": []}}` + "\n"

// fakeQEMU greets and answers each command with what answer returns for it.
func fakeQEMU(t *testing.T, answer func(command string, id uint64) string) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { _ = theirs.Close() })
	go func() {
		_, _ = theirs.Write([]byte(greeting))
		s := bufio.NewScanner(theirs)
		for s.Scan() {
			var c struct {
				Execute string
				ID      uint64
			}
			if json.Unmarshal(s.Bytes(), &c) != nil {
				return
			}
			a := fmt.Sprintf(`{"return": {}, "id": %d}`+"\n", c.ID)
			if c.Execute != "qmp_capabilities" {
				a = answer(c.Execute, c.ID)
			}
			if a == "" {
				_ = theirs.Close()
				return
			}
			_, _ = theirs.Write([]byte(a))
		}
	}()
	return ours
}

func noEvent(string, json.RawMessage) {}

func TestQMP(t *testing.T) {
	var events []string
	q, err := newQMP(t.Context(), fakeQEMU(t, func(command string, id uint64) string {
		switch command {
		case "query-status":
			return fmt.Sprintf("{\"event\": \"STOP\", \"data\": {\"x\": 1}}\n{\"return\": 1, \"id\": 99}\n{\"return\": {\"status\": \"paused\"}, \"id\": %d}\n", id)
		case "quit":
			return ""
		default:
			return fmt.Sprintf(`{"error": {"class": "CommandNotFound", "desc": "no command %s"}, "id": %d}`+"\n", command, id)
		}
	}), func(name string, data json.RawMessage) { events = append(events, name+" "+string(data)) })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = q.Close() }()
	var st struct{ Status string }
	if err := q.execute(t.Context(), "query-status", nil, &st); err != nil || st.Status != "paused" {
		t.Errorf("%+v, %v", st, err)
	}
	if got := strings.Join(events, ", "); got != `STOP {"x": 1}` {
		t.Errorf("events %q", got)
	}
	if err := q.execute(t.Context(), "fly", nil, nil); !errors.Is(err, errQMP) || !strings.Contains(err.Error(), "no command fly") {
		t.Error(err)
	}
	if err := q.execute(t.Context(), "quit", nil, nil); !errors.Is(err, vmm.ErrExited) {
		t.Error(err)
	}
	if err := q.execute(t.Context(), "stop", nil, nil); !errors.Is(err, vmm.ErrExited) {
		t.Errorf("after the end: %v", err)
	}
}

func TestQMPWithoutGreeting(t *testing.T) {
	ours, theirs := net.Pipe()
	defer func() { _ = theirs.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := newQMP(ctx, ours, noEvent); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestQMPNonsense(t *testing.T) {
	ours, theirs := net.Pipe()
	go func() {
		_, _ = theirs.Write([]byte("this is no QMP\n"))
		_ = theirs.Close()
	}()
	if _, err := newQMP(t.Context(), ours, noEvent); !errors.Is(err, errQMP) {
		t.Error(err)
	}
}
