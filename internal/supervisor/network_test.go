package supervisor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/vm"
)

type fakeBackend struct {
	network.Backend
	name, missing, blocked string
}

func (b fakeBackend) Name() string    { return b.name }
func (b fakeBackend) Blocked() string { return b.blocked }

func (b fakeBackend) Available() error {
	if b.missing == "" {
		return nil
	}
	return fmt.Errorf("%w: %s", network.ErrUnavailable, b.missing)
}

func TestChooseNetwork(t *testing.T) {
	usernet, bridge := fakeBackend{name: "usernet"}, fakeBackend{name: "bridge"}
	noRoot, blocked := fakeBackend{name: "bridge", missing: "it needs root"}, fakeBackend{name: "bridge", blocked: "a firewall"}
	for _, tt := range []struct {
		name     string
		backends []network.Backend
		spec     vm.NetworkSpec
		want     string
		why      string // in the reason, or in the error if nothing is wanted
	}{
		{"root", []network.Backend{usernet, bridge}, vm.NetworkSpec{Backend: "auto"}, "bridge", ""},
		{"user", []network.Backend{usernet, noRoot}, vm.NetworkSpec{Backend: "auto"}, "usernet", "it needs root"},
		{"root with a firewall", []network.Backend{usernet, blocked}, vm.NetworkSpec{Backend: "auto"}, "usernet", "a firewall"},
		{"rootless", []network.Backend{usernet, bridge}, vm.NetworkSpec{Backend: "auto", Mode: vm.ModeRootless}, "usernet", ""},
		{"privileged", []network.Backend{usernet, blocked}, vm.NetworkSpec{Backend: "auto", Mode: vm.ModePrivileged}, "bridge", "a firewall"},
		{"privileged as user", []network.Backend{usernet, noRoot}, vm.NetworkSpec{Backend: "auto", Mode: vm.ModePrivileged}, "", "this host can do --network usernet"},
		{"address as user", []network.Backend{usernet, noRoot}, vm.NetworkSpec{Backend: "auto", IP: "10.201.0.9"}, "", "it needs root"},
		{"bridge with a firewall", []network.Backend{usernet, blocked}, vm.NetworkSpec{Backend: "bridge"}, "bridge", "a firewall"},
		{"bridge as user", []network.Backend{usernet, noRoot}, vm.NetworkSpec{Backend: "bridge"}, "", "this host can do --network usernet"},
		{"unknown", []network.Backend{usernet}, vm.NetworkSpec{Backend: "tin-cans"}, "", "it is auto, usernet"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, why, err := ChooseNetwork(tt.backends, tt.spec)
			if err != nil {
				why = err.Error()
			}
			if strings.Count(why, network.ErrUnavailable.Error()) > 1 {
				t.Errorf("it is said twice: %s", why)
			}
			if got != tt.want || (err == nil) != (tt.want != "") || !strings.Contains(why, tt.why) {
				t.Errorf("got %q, %q, %v; want %q with %q", got, why, err, tt.want, tt.why)
			}
		})
	}
}

// fakePublisher has ports, of which some cannot be had.
type fakePublisher struct{ ports []network.Port }

func (f *fakePublisher) Publish(_ context.Context, p network.Port) ([]network.Port, error) {
	if p.HostPort == 99 {
		return nil, network.ErrPortTaken
	}
	f.ports = append(f.ports, p.Families()...)
	return p.Families(), nil
}

func (f *fakePublisher) Unpublish(p network.Port) error {
	i := slices.Index(f.ports, p)
	if i < 0 {
		return network.ErrNotPublished
	}
	f.ports = slices.Delete(f.ports, i, i+1)
	return nil
}

func parsePorts(t *testing.T, specs ...string) []network.Port {
	t.Helper()
	ports, err := network.ParsePublish(specs)
	if err != nil {
		t.Fatal(err)
	}
	return ports
}

func TestPublishAllOrNone(t *testing.T) {
	f := &fakePublisher{ports: parsePorts(t, "1:1")}
	if done, err := openAll(t.Context(), f, parsePorts(t, "98:2", "99:3")); !errors.Is(err, network.ErrPortTaken) || len(done) != 0 || len(f.ports) != 1 {
		t.Errorf("opened %v, %v; left open %v", done, err, f.ports)
	}
	if done, err := openAll(t.Context(), f, parsePorts(t, "98:2", "[::]:97:3")); err != nil || len(done) != 3 || len(f.ports) != 4 {
		t.Errorf("opened %v, %v", done, err)
	}
}

func TestUnpublish(t *testing.T) {
	open := []string{"0.0.0.0:8080:80", "[::]:8080:80", "127.0.0.1:8081:80", "0.0.0.0:8080:80/udp", "0.0.0.0:81:81"}
	for _, tt := range []struct {
		asked string
		left  []string
	}{
		{"80", []string{"0.0.0.0:8080:80/udp", "0.0.0.0:81:81"}},
		{"8080:80", []string{"127.0.0.1:8081:80", "0.0.0.0:8080:80/udp", "0.0.0.0:81:81"}},
		{"0.0.0.0:8080:80", []string{"[::]:8080:80", "127.0.0.1:8081:80", "0.0.0.0:8080:80/udp", "0.0.0.0:81:81"}},
		{"[::]:8080:80", []string{"0.0.0.0:8080:80", "127.0.0.1:8081:80", "0.0.0.0:8080:80/udp", "0.0.0.0:81:81"}},
		{"127.0.0.1:8081:80", []string{"0.0.0.0:8080:80", "[::]:8080:80", "0.0.0.0:8080:80/udp", "0.0.0.0:81:81"}},
		{"80/udp", []string{"0.0.0.0:8080:80", "[::]:8080:80", "127.0.0.1:8081:80", "0.0.0.0:81:81"}},
		{"82", open},
		{"127.0.0.2:81:81", open},
	} {
		f := &fakePublisher{ports: parsePorts(t, open...)}
		_, err := unpublish(f, slices.Clone(f.ports), parsePorts(t, tt.asked))
		if missing := len(tt.left) == len(open); missing != errors.Is(err, network.ErrNotPublished) {
			t.Errorf("%s: %v", tt.asked, err)
		}
		if want := parsePorts(t, tt.left...); !slices.Equal(f.ports, want) {
			t.Errorf("%s: left %v, want %v", tt.asked, f.ports, want)
		}
	}
}
