package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/vm"
)

// vmFilter is --filter as it was parsed: the values of each key.
type vmFilter map[string][]string

// filterKeys says for each key whether a VM has a value.
var filterKeys = map[string]func(*vmItem, string) bool{
	"id":      func(i *vmItem, v string) bool { return strings.HasPrefix(i.ID, v) },
	"name":    func(i *vmItem, v string) bool { return strings.Contains(i.Name, v) },
	"image":   func(i *vmItem, v string) bool { return strings.Contains(i.Image, v) },
	"status":  func(i *vmItem, v string) bool { return string(i.Status) == v },
	"health":  func(i *vmItem, v string) bool { return string(i.Health) == v || (v == "none" && i.Health == "") },
	"driver":  func(i *vmItem, v string) bool { return i.Driver == v },
	"network": func(i *vmItem, v string) bool { return i.Network == v },
	"label":   hasLabel,
	"exited":  func(i *vmItem, v string) bool { return i.ExitCode != nil && strconv.Itoa(*i.ExitCode) == v },
}

func hasLabel(i *vmItem, v string) bool {
	key, want, valued := strings.Cut(v, "=")
	have, ok := i.Labels[key]
	return ok && (!valued || have == want)
}

// filterValues are the words that a key takes, of those that take only some.
var filterValues = map[string][]string{
	"status": {
		string(vm.StatusCreated), string(vm.StatusStarting), string(vm.StatusRunning), string(vm.StatusPaused),
		string(vm.StatusStopping), string(vm.StatusExited), string(vm.StatusFailed), string(statusBroken),
	},
	"health": {string(vm.HealthStarting), string(vm.HealthHealthy), string(vm.HealthUnhealthy), "none"},
}

func filterNames() []string {
	var names []string
	for k := range filterKeys {
		names = append(names, k)
	}
	slices.Sort(names)
	return names
}

func parseFilter(args []string) (vmFilter, error) {
	f := vmFilter{}
	for _, arg := range args {
		key, value, ok := strings.Cut(arg, "=")
		if !ok || value == "" {
			return nil, fmt.Errorf("%w: --filter %q: it is KEY=VALUE", vm.ErrInvalid, arg)
		}
		if filterKeys[key] == nil {
			return nil, fmt.Errorf("%w: --filter %q: the key is %s", vm.ErrInvalid, arg, orList(filterNames()))
		}
		if words := filterValues[key]; words != nil && !slices.Contains(words, value) {
			return nil, fmt.Errorf("%w: --filter %q: %s is %s", vm.ErrInvalid, arg, key, orList(words))
		}
		if _, err := strconv.Atoi(value); key == "exited" && err != nil {
			return nil, fmt.Errorf("%w: --filter %q: exited is an exit code", vm.ErrInvalid, arg)
		}
		f[key] = append(f[key], value)
	}
	return f, nil
}

// wantsEnded reports whether the filter asks for VMs that have ended.
func (f vmFilter) wantsEnded() bool {
	return len(f["exited"]) > 0 || slices.ContainsFunc(f["status"], func(s string) bool { return vm.Status(s).Final() })
}

func (f vmFilter) fits(i *vmItem) bool {
	for key, values := range f {
		has := func(v string) bool { return filterKeys[key](i, v) }
		if key == "label" {
			if slices.ContainsFunc(values, func(v string) bool { return !has(v) }) {
				return false
			}
			continue
		}
		if !slices.ContainsFunc(values, has) {
			return false
		}
	}
	return true
}

// completeFilter offers keys, then values: those that a key takes, or those
// that VMs have.
func completeFilter(a *app) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		key, _, valued := strings.Cut(typed, "=")
		var out []cobra.Completion
		if !valued {
			for _, k := range filterNames() {
				if strings.HasPrefix(k, key) {
					out = append(out, k+"=")
				}
			}
			return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
		}
		values := filterValues[key]
		if values == nil {
			values = valuesOf(a, key)
		}
		for _, v := range values {
			if c := key + "=" + v; strings.HasPrefix(c, typed) {
				out = append(out, c)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// valuesOf lists what VMs have for a key of a filter.
func valuesOf(a *app, key string) []string {
	var values []string
	for _, e := range completionEntries(a) {
		r := e.Record
		switch key {
		case "id":
			values = append(values, r.ID)
		case "name":
			values = append(values, r.Name)
		case "image":
			values = append(values, printable(r.Spec.Image))
		case "driver":
			values = append(values, r.Resolved.Driver)
		case "network":
			values = append(values, r.Resolved.Network)
		case "label":
			for k, v := range r.Spec.Labels {
				values = append(values, printable(k+"="+v))
			}
		}
	}
	slices.Sort(values)
	return slices.DeleteFunc(slices.Compact(values), func(v string) bool { return v == "" })
}
