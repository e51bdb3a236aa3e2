package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// slirpHere reports whether this user can have --network slirp4netns.
func slirpHere() bool {
	if _, err := exec.LookPath("slirp4netns"); err != nil {
		return false
	}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	_ = tun.Close()
	return true
}

// networksHere are the backends that this host and user can do.
func networksHere() []string {
	list := []string{"usernet"}
	if slirpHere() {
		list = append(list, "slirp4netns")
	}
	if os.Geteuid() == 0 {
		list = append(list, "bridge")
	}
	return list
}

// get asks a web server, and returns what it says or the error.
func get(ctx context.Context, url string) string {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err.Error()
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// TestNetworks runs a web server on every backend: what it serves comes
// through a published port, another one is opened and closed while it runs,
// and it reaches the host.
func TestNetworks(t *testing.T) {
	host := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
		_, _ = io.WriteString(w, "the host")
	}), ReadHeaderTimeout: time.Minute}
	l, err := net.Listen("tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = host.Serve(l) }()
	t.Cleanup(func() { _ = host.Close() })
	port := l.Addr().(*net.TCPAddr).Port
	for _, backend := range networksHere() {
		t.Run(backend, func(t *testing.T) {
			name := "net-" + backend
			script := fmt.Sprintf(`grep 192.0.2.7 /etc/hosts && grep search.test /etc/resolv.conf && hostname
wget -q -O - http://host.containers.internal:%d/; echo
mkdir /tmp/www && dd if=/dev/zero bs=1M count=8 2>/dev/null | tr '\0' x >/tmp/www/big && echo page >/tmp/www/index.html
httpd -f -p 8080 -h /tmp/www & echo up; wait`, port)
			p := start(t, runArgs(t, []string{"--network", backend, "--name", name, "-p", "127.0.0.1:0:8080", "--add-host", "seven:192.0.2.7", "--dns-search", "search.test", "--hostname", "box"},
				"busybox", "sh", "-c", script)...)
			p.waitOutput(t, "up\n")
			for _, want := range []string{"192.0.2.7\tseven", "search search.test", "box\n", "the host"} {
				if out := p.out.String(); !strings.Contains(out, want) {
					t.Errorf("no %q in the container's output:\n%s", want, out)
				}
			}
			first := publishedAddress(t, p, name)
			p.eventually(t, "page", func() bool { return get(t.Context(), "http://"+first+"/") == "page\n" })
			if got := get(t.Context(), "http://"+first+"/big"); got != strings.Repeat("x", 8<<20) {
				t.Errorf("%d bytes came, not the 8 MiB: %.100q", len(got), got)
			}
			fcvm(t, "port", name, "8080").want(t, 0, first+"\n")

			opened := fcvm(t, "publish", name, "-p", "127.0.0.1:0:8080")
			second := strings.TrimSpace(strings.TrimPrefix(opened.stdout, "8080/tcp -> "))
			if opened.code != 0 || second == first || get(t.Context(), "http://"+second+"/") != "page\n" {
				t.Errorf("a port opened at run time: %q, %q", opened.stdout, opened.stderr)
			}
			fcvm(t, "port", name).want(t, 0, fmt.Sprintf("8080/tcp -> %s\n8080/tcp -> %s\n", first, second))
			_, busy, _ := net.SplitHostPort(second)
			fcvm(t, "publish", name, "-p", "127.0.0.1:"+busy+":9").wantError(t, 125, "port is already in use")
			fcvm(t, "publish", name, "--rm", "-p", second+":8080").want(t, 0, opened.stdout)
			if got := get(t.Context(), "http://"+second+"/"); got == "page\n" {
				t.Error("a port that was closed answers")
			}
			if got := get(t.Context(), "http://"+first+"/"); got != "page\n" {
				t.Errorf("the other port answers %q", got)
			}
			fcvm(t, "publish", name, "--rm", "-p", "9").wantError(t, 125, "port is not published")
			fcvm(t, "kill", name).want(t, 0, name+"\n")
			p.wait(t)
			// The same port again, at once.
			run(t, []string{"--network", backend, "-p", first + ":8080"}, "busybox", "true").want(t, 0, "")
		})
	}
}

// loopbackURLs is where a port that was published without a host address answers on
// the host's loopback: of IPv4, and of IPv6 with the same number where the host has it.
func loopbackURLs(t *testing.T, name, port string) []string {
	t.Helper()
	r := fcvm(t, "port", name, port)
	if r.code != 0 {
		t.Fatalf("port: %s", r.stderr)
	}
	host, shown := strings.CutPrefix(strings.TrimSpace(r.stdout), "0.0.0.0:")
	if !shown {
		t.Fatalf("fcvm port says %q", r.stdout)
	}
	urls := []string{"http://127.0.0.1:" + host + "/"}
	if l, err := net.Listen("tcp6", "[::1]:0"); err == nil {
		_ = l.Close()
		urls = append(urls, "http://[::1]:"+host+"/")
	}
	return urls
}

// TestBridgeBetweenVMs has one VM find another by its name, and none of those
// that a policy keeps it from.
func TestBridgeBetweenVMs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the bridge needs root")
	}
	web := start(t, runArgs(t, []string{"--network", "bridge", "--name", "shop"}, "busybox", "sh", "-c",
		"mkdir /tmp/www; echo wares >/tmp/www/index.html; httpd -f -p 80 -h /tmp/www & echo up; wait")...)
	web.waitOutput(t, "up\n")
	ask := []string{"sh", "-c", "timeout 60 wget -q -O - http://shop:80/ 2>/dev/null || echo refused"}
	run(t, []string{"--network", "bridge"}, "busybox", ask...).want(t, 0, "wares\n")
	run(t, []string{"--network", "bridge", "--egress", "none"}, "busybox", ask...).want(t, 0, "refused\n")

	// A supervisor that is killed leaves nothing that the next command does
	// not remove.
	if err := web.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	web.wait(t)
	fcvm(t, "ls")
	if _, err := net.InterfaceByName("fcvmbr0"); err == nil {
		t.Error("the bridge is there after the last VM")
	}
}

// TestNetworkMessages: what cannot be is said before anything boots, and what
// can be done about it.
func TestNetworkMessages(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	taken := l.Addr().String()
	for _, backend := range networksHere() {
		run(t, []string{"--network", backend, "-p", taken + ":80"}, "busybox", "true").
			wantError(t, 125, taken, "port is already in use", fmt.Sprintf("(process %d)", os.Getpid()))
	}
	for _, tt := range []struct{ flags, words []string }{
		{[]string{"-p", "80:x"}, []string{"guest port", "80:x"}},
		{[]string{"--network", "usernet", "--ip", "10.201.0.9"}, []string{"--network bridge"}},
		{[]string{"--network", "slirp4netns", "--egress", "none"}, []string{"slirp4netns", "usernet"}},
		{[]string{"--egress", "a b"}, []string{"--egress"}},
	} {
		run(t, tt.flags, "busybox", "true").wantError(t, 125, tt.words...)
	}
	if os.Geteuid() != 0 {
		run(t, []string{"--network", "bridge"}, "busybox", "true").wantError(t, 125, "needs root", "--network usernet")
		return
	}
	run(t, []string{"--network", "bridge", "--ip", "192.0.2.1"}, "busybox", "true").wantError(t, 125, "192.0.2.1", "fcvmbr0")
}
