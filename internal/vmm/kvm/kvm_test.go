package kvm

import "testing"

func TestHasFlag(t *testing.T) {
	for _, c := range []struct {
		name, cpuinfo, arch string
		want                bool
	}{
		{"intel", "processor\t: 0\nflags\t\t: fpu vmx sse\n", "amd64", true},
		{"amd", "flags\t\t: fpu svm\n", "amd64", true},
		{"neither", "flags\t\t: fpu vmxnet svmlock\nflags : vmx\n", "amd64", false},
		{"no flags", "model name : x\n", "amd64", false},
		{"arm64 does not say", "", "arm64", true},
	} {
		if got := hasFlag([]byte(c.cpuinfo), c.arch); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// Whatever this host is, the answer is consistent and comes with a reason.
func TestProbe(t *testing.T) {
	r := Probe()
	t.Logf("%+v", r)
	if r.Reason == "" {
		t.Error("no reason")
	}
	if r.RunsGuest && (!r.Present || !r.Permitted || !r.CPUFlag) {
		t.Error("runs guests without what that needs")
	}
	if !r.RunsGuest && r.Permitted && r.Remedy == "" && !r.CPUFlag {
		t.Error("no remedy")
	}
	l := Look()
	if l.Reason == "" || l.Present != r.Present || l.Permitted != r.Permitted || l.CPUFlag != r.CPUFlag || (r.RunsGuest && !l.RunsGuest) {
		t.Errorf("a look finds %+v", l)
	}
}
