package agent

import (
	"context"
	"encoding/json"
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

const mmdsTimeout = 30 * time.Second

// fetchPlan gets the plan from Firecracker's metadata service. The service
// answers on the guest's interface, before the plan says how to configure it,
// so the interface gets a link-local route first.
func fetchPlan(ctx context.Context) (*agentapi.Plan, error) {
	ctx, cancel := context.WithTimeout(ctx, mmdsTimeout)
	defer cancel()
	if err := mmdsRoute(); err != nil {
		return nil, fmt.Errorf("reach the metadata service: %w", err)
	}
	token, err := mmds(ctx, http.MethodPut, "/latest/api/token", http.Header{"X-metadata-token-ttl-seconds": {"60"}})
	if err != nil {
		return nil, err
	}
	// With "Accept: application/json" a string comes as a JSON string.
	h := http.Header{"X-metadata-token": {strings.TrimSpace(string(token))}, "Accept": {"application/json"}}
	body, err := mmds(ctx, http.MethodGet, "/"+agentapi.MMDSPlanKey, h)
	if err != nil {
		return nil, err
	}
	var text string
	if err := json.Unmarshal(body, &text); err != nil {
		return nil, fmt.Errorf("read the plan from the metadata service: %w", err)
	}
	plan := new(agentapi.Plan)
	if err := json.Unmarshal([]byte(text), plan); err != nil {
		return nil, fmt.Errorf("read the plan from the metadata service: %w", err)
	}
	return plan, nil
}

func mmds(ctx context.Context, method, path string, h http.Header) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+agentapi.MMDSAddress+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header = h
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the metadata service: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, agentapi.MaxBody+1))
	if err != nil {
		return nil, fmt.Errorf("ask the metadata service: %w", err)
	}
	if resp.StatusCode != http.StatusOK || len(b) > agentapi.MaxBody {
		return nil, fmt.Errorf("ask the metadata service for %s: %s, %d bytes", path, resp.Status, len(b))
	}
	return b, nil
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
