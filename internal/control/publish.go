package control

import (
	"context"
	"net/http"
)

const pathPublish = "/v1/publish"

// PublishRequest opens or closes ports.
type PublishRequest struct {
	Ports  []string `json:"ports"`            // as for fcvm run -p
	Remove bool     `json:"remove,omitempty"` // close them
}

// Published are ports that were opened or closed.
type Published struct {
	Ports []string `json:"ports"` // HOSTIP:HOSTPORT->GUESTPORT/PROTOCOL
}

func (s *Server) publish(w http.ResponseWriter, r *http.Request) {
	var q PublishRequest
	if decode(w, r, &q) {
		ports, err := s.vm.Publish(r.Context(), q.Ports, q.Remove)
		answer(w, Published{ports}, err)
	}
}

// Publish opens ports of the VM, or closes them, and returns them as they are,
// or were.
func (c *Client) Publish(ctx context.Context, ports []string, remove bool) ([]string, error) {
	var p Published
	err := c.call(ctx, http.MethodPost, pathPublish, PublishRequest{ports, remove}, &p)
	return p.Ports, err
}
