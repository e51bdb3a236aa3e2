package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"time"
)

// answersRedis asks a redis for a key, by its protocol's inline form:
// https://redis.io/docs/latest/develop/reference/protocol-spec/#inline-commands
func answersRedis(ctx context.Context, addr, key, want string) bool {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(c, "GET %s\r\n", key); err != nil {
		return false
	}
	r := bufio.NewReader(c)
	if _, err := r.ReadString('\n'); err != nil {
		return false
	}
	line, err := r.ReadString('\n')
	return err == nil && strings.TrimSpace(line) == want
}
