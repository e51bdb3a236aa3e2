package control

import (
	"context"
	"net/http"
	"time"
)

const pathSnapshot = "/v1/snapshot"

// SnapshotRequest saves the VM's state.
type SnapshotRequest struct {
	// Name is empty for one that whoever asks takes into use at once, and that
	// goes with its last user.
	Name string `json:"name,omitempty"`
}

// Snapshotted is a snapshot that was taken.
type Snapshotted struct {
	ID    string        `json:"id"`
	Name  string        `json:"name,omitempty"`
	Pause time.Duration `json:"pause"` // how long the guest stood still; nanoseconds
}

func (s *Server) snapshot(w http.ResponseWriter, r *http.Request) {
	var q SnapshotRequest
	if decode(w, r, &q) {
		done, err := s.vm.Snapshot(r.Context(), q)
		answer(w, done, err)
	}
}

// Snapshot saves the VM's state and returns when that can be used; with a name, when
// it is on the disk.
func (c *Client) Snapshot(ctx context.Context, q SnapshotRequest) (Snapshotted, error) {
	var s Snapshotted
	err := c.call(ctx, http.MethodPost, pathSnapshot, q, &s)
	return s, err
}
