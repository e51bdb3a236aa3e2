package cli

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/network/bridge"
	"github.com/fcvm/fcvm/internal/vm"
)

// networkOptions are the flags of run that say how a VM is connected.
type networkOptions struct {
	backend  string
	mode     vm.Mode
	publish  []string
	egress   []string
	dns      []string
	search   []string
	addHosts []string
	ip       string
	isolated bool
	subnet   string
}

// register declares the flags in the order in which the help shows them.
func (o *networkOptions) register(cmd *cobra.Command) {
	f := cmd.Flags()
	addChoice(cmd, newChoice(&o.backend, "auto", "usernet", "bridge", "slirp4netns", "none"), "network", "how the VM is connected")
	addChoice(cmd, newChoice(&o.mode, vm.ModeAuto, vm.ModeRootless, vm.ModePrivileged), "mode", "which networks --network auto may take: usernet is rootless, bridge needs root")
	f.StringArrayVarP(&o.publish, "publish", "p", nil, "publish a port: `[[IP:]HOSTPORT:]PORT`, /udp behind it for UDP")
	f.Var(egressList{&o.egress}, "egress", "let the guest connect to `WHAT` only: all, none, or a list of networks, names and *.names")
	f.StringSliceVar(&o.dns, "dns", nil, "ask the name server at `ADDRESS` in place of the host's")
	f.StringSliceVar(&o.search, "dns-search", nil, "look single words up in `DOMAIN`")
	f.StringArrayVar(&o.addHosts, "add-host", nil, "add `NAME:IP` to the container's hosts file; host-gateway is the host")
	f.StringVar(&o.ip, "ip", "", "give the VM this `ADDRESS` on the bridge")
	f.BoolVar(&o.isolated, "isolated", false, "keep the VM from others on the bridge")
	f.StringVar(&o.subnet, "subnet", "", "make the bridge with this `NETWORK` (default $FCVM_BRIDGE_SUBNET, else "+bridge.DefaultSubnet+")")
}

// egressList is the flag --egress. It refuses what is empty, as a variable of a
// script may be: who restricts a guest must not allow it everything.
type egressList struct{ list *[]string }

var _ pflag.Value = egressList{}

// Set takes any number of entries, with commas between them.
func (e egressList) Set(s string) error {
	for v := range strings.SplitSeq(s, ",") {
		if v = strings.TrimSpace(v); v == "" {
			return errors.New("it has an empty entry; none lets the guest connect to nothing, all to everything")
		}
		*e.list = append(*e.list, v)
	}
	return nil
}

// String and Type implement pflag.Value.
func (e egressList) String() string { return strings.Join(*e.list, ",") }
func (e egressList) Type() string   { return "strings" }

// spec refuses what cannot be meant before anything is made for it.
func (o *networkOptions) spec(lookup func(string) (string, bool)) (vm.NetworkSpec, error) {
	s := vm.NetworkSpec{
		Backend: o.backend, Mode: o.mode, Publish: o.publish, Egress: o.egress, DNS: o.dns, Search: o.search,
		AddHosts: o.addHosts, IP: o.ip, Isolated: o.isolated, Subnet: o.subnet,
	}
	if s.Subnet == "" {
		s.Subnet, _ = lookup("FCVM_BRIDGE_SUBNET")
	}
	switch {
	case len(o.publish) > 0 && o.backend == "none":
		return s, fmt.Errorf("%w: --publish: a VM with --network none has no ports to publish", vm.ErrInvalid)
	case o.mode == vm.ModeRootless && (o.backend == "bridge" || o.ip != "" || o.subnet != ""):
		return s, fmt.Errorf("%w: --mode rootless rules --network bridge out, and so --ip and --subnet: the bridge needs root", vm.ErrInvalid)
	case o.subnet != "" && o.backend != "auto" && o.backend != "bridge":
		return s, fmt.Errorf("%w: --subnet: it is of --network bridge alone", vm.ErrInvalid)
	case o.ip != "" && o.backend != "auto" && o.backend != "bridge":
		return s, fmt.Errorf("%w: --ip: only --network bridge gives VMs addresses of their own", vm.ErrInvalid)
	}
	if _, err := network.ParsePublish(o.publish); err != nil {
		return s, err
	}
	if _, err := network.ParseEgress(o.egress); err != nil {
		return s, err
	}
	if _, err := bridge.ParseSubnet(s.Subnet); err != nil {
		return s, fmt.Errorf("%w: --subnet: %w", vm.ErrInvalid, err)
	}
	if o.subnet != "" {
		s.Backend = "bridge" // which else could be meant
	}
	for flag, list := range map[string][]string{"dns": o.dns, "ip": o.ipList()} {
		for _, a := range list {
			if ip, err := netip.ParseAddr(a); err != nil || ip.Zone() != "" {
				return s, fmt.Errorf("%w: --%s %q: it is not an IP address", vm.ErrInvalid, flag, a)
			}
		}
	}
	for _, d := range o.search {
		if d == "" || strings.ContainsAny(d, " \t\n/:") {
			return s, fmt.Errorf("%w: --dns-search %q: it is a domain", vm.ErrInvalid, d)
		}
	}
	_, err := network.ParseHosts(o.addHosts)
	return s, err
}

func (o *networkOptions) ipList() []string {
	if o.ip == "" {
		return nil
	}
	return []string{o.ip}
}
