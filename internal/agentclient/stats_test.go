package agentclient

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/agentapi"
)

func TestHostileStats(t *testing.T) {
	for name, body := range map[string]string{
		"a negative number":      `{"net_sent":-1}`,
		"more than there is":     `{"disk_read":9223372036854775807}`,
		"a time before the boot": `{"uptime":-1}`,
		"an endless time":        `{"cpu_seconds":1e300}`,
		"more free than there":   `{"memory_total":1,"memory_available":2}`,
		"another type":           `{"cpus":"many"}`,
	} {
		if st, err := newClient(t, answers(answer(200, body))).Stats(t.Context()); !errors.Is(err, ErrAgent) {
			t.Errorf("%s: %+v, %v", name, st, err)
		}
	}
}

func TestHostileProcesses(t *testing.T) {
	const one = `{"pid":1,"state":"S","command":"x"}`
	many := strings.Repeat(one+",", agentapi.MaxProcesses) + one
	for name, body := range map[string]string{
		"too many":            fmt.Sprintf(`{"total":%d,"processes":[%s]}`, agentapi.MaxProcesses+1, many),
		"more than in all":    `{"total":0,"processes":[` + one + `]}`,
		"a negative id":       `{"total":1,"processes":[{"pid":-1}]}`,
		"negative memory":     `{"total":1,"processes":[{"resident":-1}]}`,
		"a state of many":     `{"total":1,"processes":[{"state":"sleeping"}]}`,
		"a negative age":      `{"total":1,"processes":[{"age":-1}]}`,
		"an endless CPU time": `{"total":1,"processes":[{"cpu_seconds":1e99}]}`,
	} {
		if p, err := newClient(t, answers(answer(200, body))).Processes(t.Context(), false); !errors.Is(err, ErrAgent) {
			t.Errorf("%s: %.100v, %v", name, p, err)
		}
	}
	body := `{"total":1,"processes":[{"pid":1,"state":"\u001b","command":"a\nb\t\u001b[2J` + strings.Repeat("x", 2*agentapi.MaxCommand) + `"}]}`
	p, err := newClient(t, answers(answer(200, body))).Processes(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	if got := p.Processes[0]; got.State != "·" || !strings.HasPrefix(got.Command, "a·b··[2Jx") || len(got.Command) > agentapi.MaxCommand+8 {
		t.Errorf("%+v", got)
	}
}
