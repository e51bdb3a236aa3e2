package agent

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/fcvm/fcvm/internal/agentapi"
)

func TestNetFiles(t *testing.T) {
	const local = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	for name, tc := range map[string]struct {
		n             *agentapi.Network
		hosts, resolv string
	}{
		"no network": {nil, local + "127.0.1.1\tweb\n", ""},
		"address only": {
			&agentapi.Network{Address: "10.0.2.15/24"},
			local + "10.0.2.15\tweb\n", "",
		},
		"everything": {
			&agentapi.Network{Address: "10.0.2.15/24", Gateway: "10.0.2.2", DNS: []string{"10.0.2.3", "fd00::3"}, Search: []string{"a.example", "b.example"}},
			local + "10.0.2.15\tweb\n10.0.2.2\thost.containers.internal\n",
			"nameserver 10.0.2.3\nnameserver fd00::3\nsearch a.example b.example\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := hostsFile(&agentapi.Plan{Hostname: "web", Network: tc.n}); got != tc.hosts {
				t.Errorf("hosts: got %q, want %q", got, tc.hosts)
			}
			if got := resolvConf(tc.n); got != tc.resolv {
				t.Errorf("resolv.conf: got %q, want %q", got, tc.resolv)
			}
		})
	}
}

func TestReplaceFile(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(target, []byte("of systemd"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one", "two"} {
		if err := replaceFile(link, text); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(link); err != nil || string(b) != text {
			t.Errorf("%q, %v", b, err)
		}
	}
	if b, err := os.ReadFile(target); err != nil || string(b) != "of systemd" {
		t.Errorf("the link's target: %q, %v", b, err)
	}
	if err := replaceFile(filepath.Join(dir, "none", "file"), ""); err == nil {
		t.Error("no error for a directory that is not there")
	}
}

func TestParseParams(t *testing.T) {
	for in, want := range map[string]params{
		"": {},
		"quiet fcvm.channel=serial fcvm.plan=mmds fcvm.init=systemd": {channelSerial, planMMDS, initSystemd},
		"fcvm.channel=serial fcvm.channel=vsock\n":                   {channel: "vsock"},
		"fcvm.plan fcvm.init= xfcvm.channel=serial fcvm.other=1":     {},
		"fcvm.plan=a=b": {plan: "a=b"},
	} {
		if got := parseParams(in); got != want {
			t.Errorf("%q: got %+v, want %+v", in, got, want)
		}
	}
}

func TestReadModules(t *testing.T) {
	dir := t.TempDir()
	list := filepath.Join(dir, "boot.list")
	if ms, err := readModules(list); err != nil || len(ms) != 0 {
		t.Errorf("a kernel without modules: %v, %v", ms, err)
	}
	for name, text := range map[string]string{"boot.list": "b.ko\nsub/a.ko\n", "b.ko": "no module", "sub/a.ko": ""} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ms, err := readModules(list)
	if err != nil || len(ms) != 2 || filepath.Base(ms[0].Name()) != "b.ko" {
		t.Fatalf("%v, %v", ms, err)
	}
	if err := ms.load(); err == nil {
		t.Error("files that are no modules were loaded")
	}
	if err := os.WriteFile(list, []byte("gone.ko"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readModules(list); err == nil {
		t.Error("no error for a module that is not there")
	}
}

func TestCheckPlan(t *testing.T) {
	ok := agentapi.Plan{Version: agentapi.Version, Container: agentapi.Container{Args: []string{"x"}}}
	if err := checkPlan(&ok); err != nil {
		t.Error(err)
	}
	ok.Container.Volumes, ok.Container.Mounts = []agentapi.Volume{{Target: "/data", NoCopy: true}, {Target: "/['/x']"}}, []agentapi.Mount{{Target: "/src"}}
	if err := checkPlan(&ok); err != nil {
		t.Error(err)
	}
	newer, idle, mounted := ok, ok, ok
	newer.Version++
	idle.Container.Args = nil
	mounted.Container.Mounts = []agentapi.Mount{{Target: "/src:rw,dev"}}
	plans := []agentapi.Plan{newer, idle, mounted}
	for _, dir := range []string{"/:/host", "/", "/x/..", "", "data", "name:/x", "/data/", "/a\x00b"} {
		p := ok
		p.Container.Volumes = []agentapi.Volume{{Target: dir}}
		plans = append(plans, p)
	}
	for _, p := range plans {
		if checkPlan(&p) == nil {
			t.Errorf("%+v: no error", p)
		}
	}
}
