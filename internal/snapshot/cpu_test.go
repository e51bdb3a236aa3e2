package snapshot

import (
	"strings"
	"testing"
)

const x86Info = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\nstepping\t: 1\ncpu MHz\t\t: 2450.0\nflags\t\t: fpu vme sse2\n\nprocessor\t: 1\nmodel name\t: other\nflags\t\t: none\n"

func TestParseCPU(t *testing.T) {
	a, err := parseCPU(strings.NewReader(x86Info))
	if err != nil || a.Model != "AMD EPYC" || a.Features == "" {
		t.Fatalf("%+v, %v", a, err)
	}
	for name, c := range map[string]struct {
		old, new string
		same     bool
	}{
		"another speed":        {"2450.0", "3000.0", true},
		"another order":        {"fpu vme sse2", "sse2 fpu vme", true},
		"one feature less":     {" sse2", "", false},
		"another model":        {"model\t\t: 1", "model\t\t: 2", false},
		"another second CPU":   {"flags\t\t: none", "flags\t\t: some", true},
		"another manufacturer": {"AuthenticAMD", "GenuineIntel", false},
	} {
		b, err := parseCPU(strings.NewReader(strings.Replace(x86Info, c.old, c.new, 1)))
		if err != nil || (a.Features == b.Features) != c.same {
			t.Errorf("%s: %+v, %v", name, b, err)
		}
	}
	arm, err := parseCPU(strings.NewReader("processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"))
	if err != nil || arm.Model != "part 0xd0c" {
		t.Errorf("arm64: %+v, %v", arm, err)
	}
	if _, err := parseCPU(strings.NewReader("")); err == nil {
		t.Error("nothing is a CPU")
	}
	if c, err := HostCPU(); err != nil || c.Features == "" {
		t.Errorf("this host: %+v, %v", c, err)
	}
}
