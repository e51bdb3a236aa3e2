package vm

import (
	"fmt"
	"strconv"
	"strings"
)

// Restart policies.
const (
	RestartNo        = "no"
	RestartOnFailure = "on-failure"
	RestartAlways    = "always"
)

// Restart says what happens when the container has ended by itself.
type Restart struct {
	Policy string `json:"policy"`        // one of the constants; empty: RestartNo
	Max    int    `json:"max,omitempty"` // restarts of on-failure; 0: any number
}

// ParseRestart reads "no", "on-failure[:N]" or "always".
func ParseRestart(s string) (Restart, error) {
	policy, count, counted := strings.Cut(s, ":")
	r := Restart{Policy: policy}
	bad := fmt.Errorf("%w: --restart %q: it is no, on-failure, on-failure:N or always", ErrInvalid, s)
	switch policy {
	case RestartNo, RestartAlways:
		if counted {
			return Restart{}, bad
		}
		if policy == RestartNo {
			return Restart{}, nil
		}
	case RestartOnFailure:
		if counted {
			n, err := strconv.Atoi(count)
			if err != nil || n < 1 {
				return Restart{}, bad
			}
			r.Max = n
		}
	default:
		return Restart{}, bad
	}
	return r, nil
}

// Again reports whether a container that ended with code by itself is to be
// started again, after as many restarts as there were.
func (r Restart) Again(code, restarts int) bool {
	switch r.Policy {
	case RestartAlways:
		return true
	case RestartOnFailure:
		return code != 0 && (r.Max == 0 || restarts < r.Max)
	}
	return false
}
