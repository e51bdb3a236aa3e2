package agent

import (
	"context"
	"errors"
	"reflect"
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
	env     []string      // KEY=VALUE of commands in the container, given by restores
	planSet chan struct{} // closed when plan is set
	rooted  chan struct{} // closed when the phase is up or failed
	settled chan struct{} // closed when the phase is ready or failed
}

func newState() *state {
	return &state{
		phase: agentapi.PhaseBooting, planSet: make(chan struct{}), rooted: make(chan struct{}), settled: make(chan struct{}),
	}
}

func (s *state) setPlan(p *agentapi.Plan) error {
	if err := checkPlan(p); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plan != nil {
		// Whoever has lost the answer says it again.
		if reflect.DeepEqual(s.plan, p) {
			return nil
		}
		return errHavePlan
	}
	s.plan = p
	close(s.planSet)
	return nil
}

func (s *state) waitPlan() *agentapi.Plan {
	<-s.planSet
	s.mu.Lock()
	defer s.mu.Unlock()
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

// hostname is what the plan says of it; empty without a plan.
func (s *state) hostname() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plan == nil {
		return ""
	}
	return s.plan.Hostname
}

// network is what the plan says of it; nil without a plan or a network.
func (s *state) network() *agentapi.Network {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plan == nil {
		return nil
	}
	return s.plan.Network
}

// execEnv is for commands in the container, on top of what it has itself.
func (s *state) execEnv() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.env
}

// restored makes the plan that of the machine that this one has become. One
// that comes later is made for it.
func (s *state) restored(req *agentapi.RestoreRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plan == nil {
		return
	}
	p := *s.plan // others may be reading it
	if req.Hostname != "" {
		p.Hostname = req.Hostname
		if !hasVariable(p.Container.Env, "HOSTNAME") { // it has Podman's
			s.env = append(s.env, "HOSTNAME="+req.Hostname)
		}
	}
	if req.Network != nil {
		p.Network = req.Network
	}
	s.plan, s.env = &p, lastOfEach(append(s.env[:len(s.env):len(s.env)], req.Env...))
}

// up says that the guest has its root.
func (s *state) up() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase == agentapi.PhaseBooting {
		s.phase = agentapi.PhaseUp
		close(s.rooted)
	}
}

// isUp reports whether the guest has its root, and has not failed.
func (s *state) isUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.phase != agentapi.PhaseBooting && s.phase != agentapi.PhaseFailed
}

func (s *state) ready() { s.settle(agentapi.PhaseReady, nil) }

// fail is for the boot; a container that fails is an exit.
func (s *state) fail(err error) { s.settle(agentapi.PhaseFailed, err) }

func (s *state) settle(p agentapi.Phase, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != agentapi.PhaseBooting && s.phase != agentapi.PhaseUp {
		return
	}
	if s.phase == agentapi.PhaseBooting {
		close(s.rooted)
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
