package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/fcvm/fcvm/internal/vmm"
)

const (
	apiTimeout  = 30 * time.Second
	maxResponse = 1 << 20 // bytes of an answer
)

// errAPI: Firecracker refused a request; the message is its own.
var errAPI = errors.New("firecracker refused")

// The bodies of requests, as far as this package uses them. Firecracker
// refuses a field that it does not know, so nothing is here that the oldest
// supported release lacks.
// https://github.com/firecracker-microvm/firecracker/blob/main/src/firecracker/swagger/firecracker.yaml
type (
	machineConfig struct {
		VCPUs     int    `json:"vcpu_count"`
		MemoryMiB int    `json:"mem_size_mib"`
		HugePages string `json:"huge_pages,omitempty"` // "2M"
	}
	bootSource struct {
		Kernel string `json:"kernel_image_path"`
		Initrd string `json:"initrd_path,omitempty"`
		Args   string `json:"boot_args"`
	}
	drive struct {
		ID       string       `json:"drive_id"`
		Path     string       `json:"path_on_host"`
		Root     bool         `json:"is_root_device"`
		ReadOnly bool         `json:"is_read_only"`
		Limiter  *rateLimiter `json:"rate_limiter,omitempty"`
	}
	rateLimiter struct {
		Bandwidth *tokenBucket `json:"bandwidth,omitempty"` // bytes
		Ops       *tokenBucket `json:"ops,omitempty"`
	}
	tokenBucket struct {
		Size     uint64 `json:"size"`
		RefillMS uint64 `json:"refill_time"`
	}
	networkInterface struct {
		ID  string `json:"iface_id"`
		Tap string `json:"host_dev_name"`
		MAC string `json:"guest_mac,omitempty"`
	}
	vsockDevice struct {
		CID  uint32 `json:"guest_cid"`
		Path string `json:"uds_path"`
	}
	mmdsConfig struct {
		Version    string   `json:"version"`
		Interfaces []string `json:"network_interfaces"`
	}
	entropyDevice struct{}
	balloonDevice struct {
		MiB          int  `json:"amount_mib"`
		DeflateOnOOM bool `json:"deflate_on_oom"`
	}
	balloonUpdate struct {
		MiB int `json:"amount_mib"`
	}
	action struct {
		Type string `json:"action_type"`
	}
	vmState struct {
		State string `json:"state"`
	}
	snapshotCreate struct {
		Type   string `json:"snapshot_type"` // "Full" or "Diff"
		State  string `json:"snapshot_path"`
		Memory string `json:"mem_file_path"`
	}
	snapshotLoad struct {
		State  string        `json:"snapshot_path"`
		Memory memoryBackend `json:"mem_backend"`
		Resume bool          `json:"resume_vm"`
		// One of them, by release: see trackDirty.
		TrackDirty  bool `json:"track_dirty_pages,omitempty"`
		EnableDiffs bool `json:"enable_diff_snapshots,omitempty"`
	}
	memoryBackend struct {
		Type string `json:"backend_type"` // "File" or "Uffd"
		Path string `json:"backend_path"`
	}
)

// request is one call of the API.
type request struct {
	method, path string
	body         any
	answer       any           // what to decode the answer into; nil: there is none
	limit        time.Duration // 0: apiTimeout
}

func put(path string, body any) request {
	return request{method: http.MethodPut, path: path, body: body}
}

func patch(path string, body any) request {
	return request{method: http.MethodPatch, path: path, body: body}
}

func get(path string, answer any) request {
	return request{method: http.MethodGet, path: path, answer: answer}
}

// apiClient talks to one Firecracker.
type apiClient struct {
	http *http.Client
}

// newAPIClient returns a client of the socket apiSocket in dir, which
// Firecracker is about to make; done is closed when it ends.
func newAPIClient(dir string, done <-chan struct{}) *apiClient {
	return &apiClient{http: &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return vmm.DialSoon(ctx, done, dir, apiSocket)
			},
			MaxConnsPerHost: 1, // Firecracker answers one request at a time
		},
	}}
}

func (c *apiClient) close() { c.http.CloseIdleConnections() }

// do sends requests in order and stops at the first that fails.
func (c *apiClient) do(ctx context.Context, rs ...request) error {
	for _, r := range rs {
		if err := c.send(ctx, r); err != nil {
			return fmt.Errorf("%s %s: %w", r.method, r.path, err)
		}
	}
	return nil
}

func (c *apiClient) send(ctx context.Context, r request) error {
	limit := r.limit
	if limit == 0 {
		limit = apiTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var b []byte
	if r.body != nil {
		var err error
		if b, err = json.Marshal(r.body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, r.method, "http://firecracker"+r.path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return errors.Unwrap(err) // without the made-up URL
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse))
	if err != nil {
		return err
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("%w: %s", errAPI, fault(resp.Status, body))
	}
	if r.answer == nil {
		return nil
	}
	return json.Unmarshal(body, r.answer)
}

// fault is what Firecracker says of a request that failed.
func fault(status string, body []byte) string {
	var e struct {
		Message string `json:"fault_message"`
	}
	_ = json.Unmarshal(body, &e) // then there is no message
	if message := strings.Join(strings.Fields(e.Message), " "); message != "" {
		return message
	}
	return "HTTP status " + status
}
