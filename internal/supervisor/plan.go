package supervisor

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/network"
	"github.com/fcvm/fcvm/internal/vm"
)

// maxHostname is Linux's limit, bytes.
const maxHostname = 64

// plan tells the guest what to run: the image's configuration with what the
// user asked for on top.
func (in *instance) plan() *agentapi.Plan {
	rec := in.vm.Record()
	c, img := &in.Spec.Container, &in.image.Config
	process := in.resolveProcess()
	p := &agentapi.Plan{
		Version: agentapi.Version, Hostname: hostname(&rec), Time: time.Now(),
		Container: agentapi.Container{
			Name: rec.Name, Image: in.Spec.Image, Args: rec.Resolved.Command,
			Env: process.Env, WorkDir: process.WorkDir, User: process.User,
			Hostname: c.Hostname, Labels: mergeMaps(img.Labels, in.Spec.Labels),
			Privileged: c.Privileged, ReadOnly: c.ReadOnly, CapAdd: c.CapAdd, CapDrop: c.CapDrop, Tmpfs: in.tmpfs(),
			Volumes: in.anonymousVolumes(), Mounts: in.planMounts(), Interactive: c.Interactive, TTY: c.TTY,
			StopSignal: img.StopSignal,
		},
	}
	p.Network = in.guestNetwork()
	p.Hosts, _ = network.ParseHosts(in.Spec.Network.AddHosts) // it was checked
	return p
}

// hostname is the guest's: the VM's name, if nobody has said another.
func hostname(r *vm.Record) string {
	if h := r.Spec.Container.Hostname; h != "" {
		return h
	}
	return r.Name[:min(len(r.Name), maxHostname)]
}

// command is what the container runs, as Docker has it: an entrypoint that
// the user gives drops the image's command along with its entrypoint.
func command(c *vm.ContainerSpec, img *image.Config) []string {
	if c.Entrypoint != nil {
		return slices.Concat(c.Entrypoint, c.Command)
	}
	if len(c.Command) > 0 {
		return slices.Concat(img.Entrypoint, c.Command)
	}
	return slices.Concat(img.Entrypoint, img.Cmd)
}

// mergeEnv lets later KEY=VALUE entries take the place of earlier ones.
func mergeEnv(lists ...[]string) []string {
	var out []string
	at := map[string]int{}
	for _, kv := range slices.Concat(lists...) {
		key, _, _ := strings.Cut(kv, "=")
		if i, ok := at[key]; ok {
			out[i] = kv
			continue
		}
		at[key] = len(out)
		out = append(out, kv)
	}
	return out
}

func mergeMaps(a, b map[string]string) map[string]string {
	m := maps.Clone(a)
	if m == nil {
		m = map[string]string{}
	}
	maps.Copy(m, b)
	return m
}

func orElse(s, other string) string {
	if s != "" {
		return s
	}
	return other
}
