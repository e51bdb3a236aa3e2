package agentapi

import (
	"fmt"
	"path"
	"strings"
	"unicode/utf8"
)

// CheckPlace refuses what is no place in the container for a volume or a mount of
// the plan's, or could be taken for more than that. To Podman a colon makes
// another mount of it: "/:/host" is the guest's own root.
func CheckPlace(dir string) error {
	switch {
	case !path.IsAbs(dir) || path.Clean(dir) != dir || dir == "/":
		return fmt.Errorf("%q is no clean, absolute path below the container's root", dir)
	case strings.ContainsAny(dir, ":\x00") || !utf8.ValidString(dir):
		return fmt.Errorf("%q is no UTF-8 text without a colon", dir)
	}
	return nil
}
