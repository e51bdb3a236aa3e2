package agentclient

import (
	"context"
	"net"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/agentapi"
)

// What cannot reach the guest as it is, is refused, and not changed on the way.
func TestExecSendsUTF8Only(t *testing.T) {
	c := New(func(context.Context) (net.Conn, error) {
		t.Error("the guest was asked")
		return nil, net.ErrClosed
	})
	for want, req := range map[string]agentapi.ExecRequest{
		`"caf\xe9" is not UTF-8 text`:                     {Args: []string{"rm", "caf\xe9"}},
		`"/caf\xe9" is not UTF-8 text`:                    {Args: []string{"ls"}, WorkDir: "/caf\xe9"},
		`"ren\xe9" is not UTF-8 text`:                     {Args: []string{"ls"}, User: "ren\xe9"},
		`the value of variable "KEY" is not UTF-8 text; `: {Args: []string{"ls"}, Env: []string{"KEY=secret\xe9"}},
	} {
		_, err := c.Exec(t.Context(), req)
		if err == nil || !strings.HasPrefix(err.Error(), "run a command in the container: "+want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
