package serialmux

import (
	"io"
	"net"
	"time"

	"github.com/hashicorp/yamux"
)

// chunk is what is passed on at once, bytes: a frame of the agent's in one piece.
const chunk = 72 << 10

// newConn gives a stream the manners of a net.Conn. Closing a stream of yamux
// does not end a Read that waits, and none of its methods returns while the
// port takes nothing, as that of a guest that has stopped reading. Whoever
// holds the connection must be able to leave such a guest; what then hangs is
// a goroutine in here, until the session ends.
func newConn(s *yamux.Stream) net.Conn {
	ours, theirs := net.Pipe()
	go func() {
		_, _ = io.CopyBuffer(s, theirs, make([]byte, chunk))
		// Nobody reads any more, whatever the peer still sends.
		_ = s.SetReadDeadline(time.Unix(1, 0))
		_ = s.Close()
	}()
	go func() {
		_, _ = io.CopyBuffer(theirs, s, make([]byte, chunk))
		_ = theirs.Close()
	}()
	return ours
}
