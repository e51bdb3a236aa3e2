package vm

import (
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// GateKind is what a readiness gate looks at.
type GateKind string

// The kinds of gates.
const (
	GateStarted GateKind = ""      // the container's first process runs
	GateAgent   GateKind = "agent" // the guest's agent answers: always so by then
	GateHTTP    GateKind = "http"  // a GET inside the guest is answered with 200 to 399
	GateTCP     GateKind = "tcp"   // a port of the guest accepts a connection
	GateLog     GateKind = "log"   // a line of the output matches
	GateExec    GateKind = "exec"  // a command in the container ends with 0
)

// What a gate has when nothing else is said.
const (
	DefaultGateTimeout  = 5 * time.Minute
	DefaultGateInterval = 500 * time.Millisecond
)

// Gate says when a VM counts as ready.
type Gate struct {
	Kind     GateKind      `json:"kind,omitempty"`
	Value    string        `json:"value,omitempty"` // URL, port, expression or command
	Timeout  time.Duration `json:"timeout,omitempty"`
	Interval time.Duration `json:"interval,omitempty"`
}

// ParseGate reads "agent", "http=URL", "tcp=PORT", "log=REGEX" or "exec=CMD",
// each with ",timeout=TIME" and ",interval=TIME" behind it.
func ParseGate(s string) (Gate, error) {
	g := Gate{Timeout: DefaultGateTimeout, Interval: DefaultGateInterval}
	// Options stand at the end; what is before them may have commas.
	for {
		i := strings.LastIndexByte(s, ',')
		if i < 0 {
			break
		}
		key, value, _ := strings.Cut(s[i+1:], "=")
		if key != "timeout" && key != "interval" {
			break
		}
		d, err := time.ParseDuration(value)
		if err != nil || d <= 0 {
			return Gate{}, fmt.Errorf("%w: --wait-ready: %s=%q is not a time like 30s", ErrInvalid, key, value)
		}
		if key == "interval" && d < MinInterval {
			return Gate{}, fmt.Errorf("%w: --wait-ready: interval=%s is less than %s", ErrInvalid, d, MinInterval)
		}
		if key == "timeout" {
			g.Timeout = d
		} else {
			g.Interval = d
		}
		s = s[:i]
	}
	kind, value, given := strings.Cut(s, "=")
	g.Kind, g.Value = GateKind(kind), value
	if err := g.check(given); err != nil {
		return Gate{}, fmt.Errorf("%w: --wait-ready %q: %w", ErrInvalid, s, err)
	}
	return g, nil
}

func (g *Gate) check(given bool) error {
	if g.Kind == GateAgent {
		if given {
			return fmt.Errorf("agent takes no value")
		}
		return nil
	}
	switch g.Kind {
	case GateHTTP:
		u, err := url.Parse(g.Value)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return fmt.Errorf("%q is not a URL like http://localhost:8080/health", g.Value)
		}
	case GateTCP:
		if n, err := strconv.ParseUint(g.Value, 10, 16); err != nil || n == 0 {
			return fmt.Errorf("%q is not a port", g.Value)
		}
	case GateLog:
		if _, err := regexp.Compile(g.Value); err != nil || g.Value == "" {
			return fmt.Errorf("%q is not a regular expression", g.Value)
		}
	case GateExec:
		if strings.TrimSpace(g.Value) == "" {
			return fmt.Errorf("exec needs a command")
		}
	default:
		return fmt.Errorf("it is agent, http=URL, tcp=PORT, log=REGEX or exec=CMD")
	}
	return nil
}
