package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/network"
)

const (
	// mmdsTimeout bounds how long the service may not answer, and mmdsTries says how
	// often it is asked at least, with pauses up to mmdsPause: the clock of a guest
	// whose host is busy can jump.
	mmdsTimeout = 30 * time.Second
	mmdsTries   = 30
	mmdsPause   = 100 * time.Millisecond

	// mmdsPoll is how often a service that has no plan is asked for it. What
	// comes of it is taken over at the start of a container, so it is short; it
	// costs four packets that no process of the host's sees.
	mmdsPoll = 5 * time.Millisecond

	// mmdsRequest bounds one request: a service that is another one since a
	// snapshot was loaded knows nothing of its connection.
	mmdsRequest = time.Second
)

var (
	// errNoPlan: the metadata service has none yet.
	errNoPlan = errors.New("the metadata service has no plan")
	// errBadPlan: what it has is no plan.
	errBadPlan = errors.New("read the plan from the metadata service")
)

// fetchPlan gets the plan from Firecracker's metadata service, and waits until
// the service has it, or it has come over the channel. The service answers on
// the guest's interface, before the plan says how to configure it, so the
// interface gets a link-local route first.
func (a *agent) fetchPlan(ctx context.Context) error {
	if err := mmdsRoute(); err != nil {
		return fmt.Errorf("reach the metadata service: %w", err)
	}
	m := &metadata{address: "http://" + agentapi.MMDSAddress}
	defer m.close()
	return a.pollPlan(ctx, m)
}

func (a *agent) pollPlan(ctx context.Context, m *metadata) error {
	answered, failed := time.Now(), 0
	for {
		pause := mmdsPoll
		plan, err := m.plan(ctx)
		switch {
		case err == nil:
			if err := a.state.setPlan(plan); !errors.Is(err, errHavePlan) {
				return err
			}
			return nil
		case errors.Is(err, errNoPlan):
			answered, failed = time.Now(), 0
		case errors.Is(err, errBadPlan), failed >= mmdsTries && time.Since(answered) > mmdsTimeout:
			return err
		default:
			failed++
			pause = min(time.Duration(failed)*mmdsPoll, mmdsPause)
		}
		select {
		case <-a.state.planSet:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// metadata is a client of Firecracker's metadata service.
type metadata struct {
	address string
	http    http.Client
	token   string
}

func (m *metadata) close() { m.http.CloseIdleConnections() }

// plan returns errNoPlan if there is none.
func (m *metadata) plan(ctx context.Context) (*agentapi.Plan, error) {
	ctx, cancel := context.WithTimeout(ctx, mmdsRequest)
	defer cancel()
	if m.token == "" {
		status, token, err := m.ask(ctx, http.MethodPut, "/latest/api/token", http.Header{"X-metadata-token-ttl-seconds": {"21600"}})
		if err != nil {
			return nil, err
		}
		if status != http.StatusOK {
			return nil, fmt.Errorf("ask the metadata service for a token: HTTP status %d", status)
		}
		m.token = strings.TrimSpace(string(token))
	}
	// With "Accept: application/json" a string comes as a JSON string.
	status, body, err := m.ask(ctx, http.MethodGet, "/"+agentapi.MMDSPlanKey, http.Header{"X-metadata-token": {m.token}, "Accept": {"application/json"}})
	switch {
	case err != nil:
		return nil, err
	case status == http.StatusNotFound:
		return nil, errNoPlan
	case status != http.StatusOK:
		m.token = "" // it was another service's, or is too old
		return nil, fmt.Errorf("ask the metadata service for the plan: HTTP status %d", status)
	}
	var text string
	if err := json.Unmarshal(body, &text); err != nil {
		return nil, fmt.Errorf("%w: %w", errBadPlan, err)
	}
	plan := new(agentapi.Plan)
	if err := json.Unmarshal([]byte(text), plan); err != nil {
		return nil, fmt.Errorf("%w: %w", errBadPlan, err)
	}
	return plan, nil
}

func (m *metadata) ask(ctx context.Context, method, path string, h http.Header) (status int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, method, m.address+path, nil)
	if err != nil {
		return 0, nil, err
	}
	req.Header = h
	resp, err := m.http.Do(req)
	if err != nil {
		return 0, nil, fmt.Errorf("ask the metadata service: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, agentapi.MaxBody+1))
	if err != nil {
		return 0, nil, fmt.Errorf("ask the metadata service: %w", err)
	}
	if len(b) > agentapi.MaxBody {
		return 0, nil, fmt.Errorf("ask the metadata service for %s: more than %d bytes", path, agentapi.MaxBody)
	}
	return resp.StatusCode, b, nil
}

func mmdsRoute() error {
	l, err := netlink.LinkByName(network.GuestInterface)
	if err != nil {
		return fmt.Errorf("find network interface %s: %w", network.GuestInterface, err)
	}
	addr, err := netlink.ParseAddr(network.GuestAddress)
	if err != nil {
		return err
	}
	if err := netlink.AddrReplace(l, addr); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return err
	}
	return netlink.RouteReplace(&netlink.Route{
		LinkIndex: l.Attrs().Index, Scope: netlink.SCOPE_LINK,
		Dst: &net.IPNet{IP: net.ParseIP(agentapi.MMDSAddress), Mask: net.CIDRMask(32, 32)},
	})
}
