package agent

import (
	"context"
	"errors"
	"sync"

	"github.com/fcvm/fcvm/internal/agentapi"
)

var errHavePlan = errors.New("this guest has its plan already")

// state is how far the guest is. Phases only go forward.
type state struct {
	mu      sync.Mutex
	phase   agentapi.Phase
	err     error
	plan    *agentapi.Plan
	exit    *agentapi.Exit
	planSet chan struct{} // closed when plan is set
	settled chan struct{} // closed when the phase is ready or failed
}

func newState() *state {
	return &state{phase: agentapi.PhaseBooting, planSet: make(chan struct{}), settled: make(chan struct{})}
}

func (s *state) setPlan(p *agentapi.Plan) error {
	if err := checkPlan(p); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plan != nil {
		return errHavePlan
	}
	s.plan = p
	close(s.planSet)
	return nil
}

func (s *state) waitPlan() *agentapi.Plan {
	<-s.planSet
	return s.plan
}

// container is what the plan says of it; empty without a plan.
func (s *state) container() agentapi.Container {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plan == nil {
		return agentapi.Container{}
	}
	return s.plan.Container
}

func (s *state) ready() { s.settle(agentapi.PhaseReady, nil) }

// fail is for the boot; a container that fails is an exit.
func (s *state) fail(err error) { s.settle(agentapi.PhaseFailed, err) }

func (s *state) settle(p agentapi.Phase, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != agentapi.PhaseBooting {
		return
	}
	s.phase, s.err = p, err
	close(s.settled)
}

// waitReady returns the plan when a container can be started.
func (s *state) waitReady(ctx context.Context) (*agentapi.Plan, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.settled:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.plan, s.err
}

func (s *state) set(p agentapi.Phase) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase = p
}

func (s *state) exited(e agentapi.Exit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase, s.exit = agentapi.PhaseExited, &e
}

func (s *state) status() agentapi.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := agentapi.Status{Version: agentapi.Version, Phase: s.phase, HavePlan: s.plan != nil, Exit: s.exit}
	if s.err != nil {
		st.Error = s.err.Error()
	}
	return st
}
