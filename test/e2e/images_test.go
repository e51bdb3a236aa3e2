package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fcvm/fcvm/test/images"
)

// stopSignal ends nginx and redis in order.
const stopSignal = syscall.SIGTERM

// source is how an image gets to fcvm.
type source struct {
	name string
	ref  func(t *testing.T, image string) string
}

func sources() []source {
	return []source{
		{"oci-archive", func(t *testing.T, image string) string { return archive(t, image) }},
		{"docker-archive", func(t *testing.T, image string) string {
			path, err := images.DockerArchive(t.Context(), env.images, image)
			if err != nil {
				t.Fatal(err)
			}
			return "docker-archive:" + path
		}},
		{"registry", func(t *testing.T, image string) string {
			return images.Serve(t, env.images, image)
		}},
	}
}

// TestSources runs one image from wherever it can come, and again: the second
// time nothing is converted.
func TestSources(t *testing.T) {
	for _, s := range sources() {
		t.Run(s.name, func(t *testing.T) {
			ref := s.ref(t, "busybox")
			fcvm(t, "run", "--vmm", env.driver, ref, "echo", "hello").want(t, 0, "hello\n")
			r := fcvm(t, "run", "--vmm", env.driver, "--verbose", ref, "echo", "hello")
			r.want(t, 0, "hello\n")
			if !strings.Contains(r.stderr, "(cached)") {
				t.Errorf("the second run converted the image again:\n%s", r.stderr)
			}
		})
	}
}

func TestPython(t *testing.T) {
	r := run(t, nil, "python3", "python3", "-c", "import json, hashlib; print(json.dumps(sum(range(1000))), hashlib.sha256(b'x').hexdigest()[:8])")
	r.want(t, 0, "499500 2d711642\n")
}

func TestNginx(t *testing.T) {
	p := start(t, runArgs(t, []string{"--name", "web", "-p", "127.0.0.1:0:80"}, "nginx")...)
	addr := publishedAddress(t, p, "web")
	p.eventually(t, "answer of nginx", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return false
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		return err == nil && resp.StatusCode == http.StatusOK && strings.Contains(string(body), "nginx")
	})
	if err := p.Process.Signal(stopSignal); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d after SIGTERM, want 0; stderr:\n%s", code, p.errs.String())
	}
}

func TestRedis(t *testing.T) {
	p := start(t, runArgs(t, []string{"--name", "cache", "-p", "127.0.0.1:0:6379"}, "redis")...)
	addr := publishedAddress(t, p, "cache")
	p.waitOutput(t, "Ready to accept connections")
	conn, err := net.DialTimeout("tcp", addr, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := fmt.Fprint(conn, "SET k fcvm\r\nGET k\r\nQUIT\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.Contains(string(answer), "fcvm") {
		t.Errorf("answer %q, %v; want the value", answer, err)
	}
	if err := p.Process.Signal(stopSignal); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d after SIGTERM, want 0; stderr:\n%s", code, p.errs.String())
	}
}

// publishedAddress waits until a VM has its one port, and returns it.
func publishedAddress(t *testing.T, p *vmProcess, name string) string {
	t.Helper()
	var addr string
	p.eventually(t, "published port of "+name, func() bool {
		var records []struct {
			Resolved struct {
				Ports []string `json:"ports"`
			} `json:"resolved"`
		}
		r := fcvm(t, "inspect", name)
		if r.code != 0 || decode([]byte(r.stdout), &records) != nil || len(records) != 1 || len(records[0].Resolved.Ports) != 1 {
			return false
		}
		addr, _, _ = strings.Cut(records[0].Resolved.Ports[0], "->")
		return true
	})
	return addr
}

// TestOneConversion starts several runs of an image that is not in the cache.
func TestOneConversion(t *testing.T) {
	ref := "oci-archive:" + images.Variant(t, env.images, "busybox", "variant="+time.Now().String())
	const n = 3
	results := make([]result, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			results[i] = fcvm(t, "run", "--vmm", env.driver, "--verbose", ref, "echo", "hello")
		})
	}
	all.Wait()
	converted := 0
	for _, r := range results {
		r.want(t, 0, "hello\n")
		if strings.Contains(r.stderr, "(converted)") {
			converted++
		}
	}
	if converted != 1 {
		t.Errorf("%d of %d runs converted the image, want 1", converted, n)
	}
}
