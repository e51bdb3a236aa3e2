package agent

import (
	"errors"
	"testing"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// A host that has lost the answer sends the plan again; another one is refused.
func TestPlanMayBeSaidAgain(t *testing.T) {
	s := newState()
	at := time.Now()
	plan := func(arg string) *agentapi.Plan {
		return &agentapi.Plan{Version: agentapi.Version, Time: at, Container: agentapi.Container{Args: []string{arg}}}
	}
	for range 2 {
		if err := s.setPlan(plan("a")); err != nil {
			t.Error(err)
		}
	}
	if err := s.setPlan(plan("b")); !errors.Is(err, errHavePlan) {
		t.Errorf("another plan: %v", err)
	}
}
