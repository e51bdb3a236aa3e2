package firecracker

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fcvm/fcvm/internal/vmm"
)

func testConfig(t *testing.T) vmm.Config {
	t.Helper()
	dir := t.TempDir()
	for _, n := range []string{"kernel", "initrd", "rootfs.ext4"} {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return vmm.Config{
		Dir: dir, Kernel: "kernel", Initrd: "initrd", Cmdline: "quiet fcvm.channel=vsock", CPUs: 2, MemoryMiB: 512,
		Disks:    []vmm.Disk{{ID: "root", Path: "rootfs.ext4", ReadOnly: true}},
		Net:      &vmm.Net{MAC: vmm.GuestMAC, Tap: "tap0", MTU: 1500},
		Metadata: json.RawMessage(`{"plan":"{}"}`),
	}
}

// The requests are the contract with Firecracker: what a release knows, in an
// order that it takes.
func TestRequests(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the kernel's command line differs")
	}
	cfg := testConfig(t)
	var got []string
	for _, r := range requests(&cfg) {
		b, err := json.Marshal(r.body)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r.method+" "+r.path+" "+string(b))
	}
	want := []string{
		`PUT /machine-config {"vcpu_count":2,"mem_size_mib":512}`,
		`PUT /boot-source {"kernel_image_path":"kernel","initrd_path":"initrd","boot_args":"` + cmdline(&cfg) + `"}`,
		`PUT /vsock {"guest_cid":3,"uds_path":"vsock.sock"}`,
		`PUT /entropy {}`,
		`PUT /balloon {"amount_mib":0,"deflate_on_oom":true}`,
		`PUT /drives/root {"drive_id":"root","path_on_host":"rootfs.ext4","is_root_device":false,"is_read_only":true}`,
		`PUT /network-interfaces/eth0 {"iface_id":"eth0","host_dev_name":"tap0","guest_mac":"02:fc:00:00:00:05"}`,
		`PUT /mmds/config {"version":"V2","network_interfaces":["eth0"]}`,
		`PUT /mmds {"plan":"{}"}`,
		`PUT /actions {"action_type":"InstanceStart"}`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if !strings.HasSuffix(cmdline(&cfg), " quiet fcvm.channel=vsock") {
		t.Errorf("command line %q does not end with the caller's", cmdline(&cfg))
	}
}

func TestArgsMakeRoomForMetadata(t *testing.T) {
	var cfg vmm.Config
	if a := strings.Join(args(&cfg), " "); strings.Contains(a, "limit") {
		t.Errorf("limits that are not needed: %s", a)
	}
	// There is nothing in it yet, and may be more later.
	cfg.Metadata = json.RawMessage(`{}`)
	if a := strings.Join(args(&cfg), " "); !strings.Contains(a, "--http-api-max-payload-size 4198400 --mmds-size-limit 4198400") {
		t.Errorf("no room for the metadata: %s", a)
	}
}

func TestCheck(t *testing.T) {
	cfg := testConfig(t)
	if err := check(&cfg); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*vmm.Config)
		want   error
	}{
		{"a socket for the network", func(c *vmm.Config) { c.Net = &vmm.Net{Socket: os.Stdin} }, vmm.ErrUnsupported},
		{"metadata and no network", func(c *vmm.Config) { c.Net = nil }, vmm.ErrUnsupported},
		{"no kernel", func(c *vmm.Config) { c.Kernel = "nothing" }, fs.ErrNotExist},
		{"no disk", func(c *vmm.Config) { c.Disks[0].Path = "nothing" }, fs.ErrNotExist},
	} {
		cfg := testConfig(t)
		c.change(&cfg)
		if err := check(&cfg); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
