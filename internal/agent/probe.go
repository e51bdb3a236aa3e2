package agent

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// maxProbe bounds one look.
const maxProbe = time.Minute

// postProbe says whether a service in the guest answers. The container shares
// the guest's network, so this is what it would see itself.
func (a *agent) postProbe(w http.ResponseWriter, r *http.Request) {
	var req agentapi.ProbeRequest
	if !decode(w, r, &req) {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), min(req.Timeout, maxProbe))
	defer cancel()
	var err error
	if req.HTTP != "" {
		err = probeHTTP(ctx, req.HTTP)
	} else {
		err = probeTCP(ctx, req.TCP)
	}
	if err != nil {
		replyError(w, http.StatusConflict, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func probeTCP(ctx context.Context, port uint16) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort("localhost", strconv.Itoa(int(port))))
	if err != nil {
		return err
	}
	return c.Close()
}

func probeHTTP(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	// Who looks from inside the guest asks whether it is up, not who it is. One
	// that sends others elsewhere is up, whatever is there.
	client := &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // see above
			DisableKeepAlives: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return nil
}
