package network

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fcvm/fcvm/internal/vm"
)

func TestParsePublish(t *testing.T) {
	for _, tt := range []struct {
		spec string
		want []string // as Port.String has it
	}{
		{"80", []string{"0->80/tcp"}},
		{"8080:80", []string{"8080->80/tcp"}},
		{"8080:80/udp", []string{"8080->80/udp"}},
		{"8080:80/TCP", []string{"8080->80/tcp"}},
		{"0:80", []string{"0->80/tcp"}},
		{":80", []string{"0->80/tcp"}},
		{":80-81/udp", []string{"0->80/udp", "0->81/udp"}},
		{"8000-8010:80", []string{"8000-8010->80/tcp"}},
		{"[::1]:8000-8010:80/udp", []string{"[::1]:8000-8010->80/udp"}},
		{"0.0.0.0:8080:80", []string{"0.0.0.0:8080->80/tcp"}},
		{"[::]:8080:80", []string{"[::]:8080->80/tcp"}},
		{"8000-8000:80", []string{"8000->80/tcp"}},
		{"127.0.0.1:8080:80", []string{"127.0.0.1:8080->80/tcp"}},
		{"127.0.0.1::80", []string{"127.0.0.1:0->80/tcp"}},
		{"127.0.0.1:0:80", []string{"127.0.0.1:0->80/tcp"}},
		{"[::1]:8080:80", []string{"[::1]:8080->80/tcp"}},
		{"[::1]::80/udp", []string{"[::1]:0->80/udp"}},
		{"[::ffff:127.0.0.1]:1:2", []string{"127.0.0.1:1->2/tcp"}},
		{"8000-8002:80-82", []string{"8000->80/tcp", "8001->81/tcp", "8002->82/tcp"}},
		{"80-81", []string{"0->80/tcp", "0->81/tcp"}},
		{"0:80-81", []string{"0->80/tcp", "0->81/tcp"}},
		{"127.0.0.1::80-81", []string{"127.0.0.1:0->80/tcp", "127.0.0.1:0->81/tcp"}},
		{"65535:65535", []string{"65535->65535/tcp"}},
		{"65534-65535:1-2", []string{"65534->1/tcp", "65535->2/tcp"}},
	} {
		t.Run(tt.spec, func(t *testing.T) {
			ports, err := ParsePublish([]string{tt.spec})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range ports {
				got = append(got, p.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("ports (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParsePublishErrors(t *testing.T) {
	for _, tt := range []struct{ spec, want string }{
		{"", "guest port is missing"},
		{"8080:", "guest port is missing"},
		{":", "guest port is missing"},
		{"x", `guest port "x"`},
		{"80:x", `guest port "x"`},
		{"x:80", `host port "x"`},
		{"+80", `guest port "+80"`},
		{"65536:80", `host port "65536"`},
		{"80:65536", `guest port "65536"`},
		{"80:0", "guest port 0"},
		{"0-3", "guest port 0"},
		{"-1:80", `host port ""`},
		{"80/sctp", `protocol "sctp"`},
		{"80/", `protocol ""`},
		{"80/tcp/udp", `protocol "tcp/udp"`},
		{"localhost:8080:80", `host address "localhost"`},
		{"1.2.3:8080:80", `host address "1.2.3"`},
		{"::1:8080:80", "in brackets"},
		{"[::1]", "want [HOSTIP]"},
		{"[::1]:80", "want [HOSTIP]"},
		{"[::1]:1:2:3", "want [HOSTIP]"},
		{"[1.2.3.4]:1:2", "not an IPv6 address"},
		{"8000-8010:80-81", "same length"},
		{"8000:80-90", "same length"},
		{"90-80", "ends before it starts"},
		{"0-1:80-81", "starts at 1"},
	} {
		t.Run(tt.spec, func(t *testing.T) {
			ports, err := ParsePublish([]string{tt.spec})
			if !errors.Is(err, vm.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, %v; want an invalid argument with %q", ports, err, tt.want)
			}
		})
	}
}

func TestParsePublishTwice(t *testing.T) {
	for _, other := range []string{"8079-8081:1-3", "0.0.0.0:8080:81", "[::]:8080:81"} {
		for _, specs := range [][]string{{"8080:80", other}, {other, "8080:80"}} {
			if _, err := ParsePublish(specs); !errors.Is(err, vm.ErrInvalid) || !strings.Contains(err.Error(), ":8080 is given twice") {
				t.Errorf("%q: got %v", specs, err)
			}
		}
	}
	ports, err := ParsePublish([]string{
		"8080:80", "8080:80/udp", "127.0.0.2:8080:80", "80", "80", "8080-8090:81", "8080-8090:82", "0.0.0.0:8081:80", "[::]:8081:80",
	})
	if err != nil || len(ports) != 9 {
		t.Errorf("ports that differ in protocol or address, or are free: got %v, %v", ports, err)
	}
}

// A port that is open in both families is one, which a clone has under one number.
func TestSpecs(t *testing.T) {
	for _, tt := range []struct{ open, want []string }{
		{[]string{"0.0.0.0:8080:80/tcp", "[::]:8080:80/tcp"}, []string{"8080:80/tcp"}},
		{[]string{"0.0.0.0:8080:80/tcp"}, []string{"0.0.0.0:8080:80/tcp"}},
		{[]string{"[::]:8080:80/tcp"}, []string{"[::]:8080:80/tcp"}},
		{[]string{"127.0.0.1:8080:80/tcp", "[::1]:8080:80/tcp"}, []string{"127.0.0.1:8080:80/tcp", "[::1]:8080:80/tcp"}},
		{[]string{"0.0.0.0:8080:80/tcp", "[::]:8080:81/tcp"}, []string{"0.0.0.0:8080:80/tcp", "[::]:8080:81/tcp"}},
		{[]string{"0.0.0.0:8080:80/tcp", "[::]:8080:80/udp"}, []string{"0.0.0.0:8080:80/tcp", "[::]:8080:80/udp"}},
		{
			[]string{"[::]:1:80/udp", "0.0.0.0:2:80/udp", "0.0.0.0:1:80/udp", "[::]:2:80/udp"},
			[]string{"2:80/udp", "1:80/udp"},
		},
	} {
		open, err := ParsePublish(tt.open)
		if err != nil {
			t.Fatal(err)
		}
		got := Specs(open)
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.open, diff)
		}
		if _, err := ParsePublish(got); err != nil {
			t.Error(err)
		}
	}
}

func TestTakes(t *testing.T) {
	for spec, want := range map[string][3]bool{ // 8000, 8005, 8011
		"80": {true, true, true}, "8000:80": {true, false, false}, "8000-8010:80": {true, true, false}, "8001-8011:80": {false, true, true},
	} {
		ports, err := ParsePublish([]string{spec})
		if err != nil {
			t.Fatal(err)
		}
		if p := ports[0]; [3]bool{p.Takes(8000), p.Takes(8005), p.Takes(8011)} != want {
			t.Errorf("%s: want %v", spec, want)
		}
	}
}

func FuzzParsePublish(f *testing.F) {
	for _, s := range []string{"80", "8080:80/udp", "127.0.0.1::80", "[::1]:8000-8010:80-90", "[fe80::1%eth0]:1:2", "[]:1:2", "-", ":::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ports, err := ParsePublish([]string{s})
		if err != nil {
			if !errors.Is(err, vm.ErrInvalid) {
				t.Fatalf("%q: %v is not an invalid argument", s, err)
			}
			return
		}
		if len(ports) == 0 {
			t.Fatalf("%q: no port and no error", s)
		}
		for _, p := range ports {
			if p.GuestPort == 0 || p.Protocol != TCP && p.Protocol != UDP {
				t.Fatalf("%q: %+v", s, p)
			}
			if !p.Takes(p.HostPort) || p.HostPortEnd != 0 && (p.HostPortEnd <= p.HostPort || !p.Takes(p.HostPortEnd)) {
				t.Fatalf("%q: it has none of its own ports: %+v", s, p)
			}
			if again, err := ParsePublish([]string{p.Spec()}); err != nil || len(again) != 1 || again[0] != p {
				t.Fatalf("%q: printed as %s, and read as %v, %v", s, p.Spec(), again, err)
			}
		}
	})
}
