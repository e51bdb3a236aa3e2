package images

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// appletLinks asks busybox itself which commands it has.
func appletLinks(ctx context.Context, debs []string, tmp string) ([]item, error) {
	bin := filepath.Join(tmp, "busybox")
	err := eachFile(ctx, debs, func(h header, content io.Reader) error {
		if h.Name != "usr/bin/busybox" {
			return nil
		}
		b, err := io.ReadAll(content)
		if err != nil {
			return err
		}
		return os.WriteFile(bin, b, 0o755)
	})
	if err != nil {
		return nil, err
	}
	out, err := run(ctx, tmp, bin, "--list")
	if err != nil {
		return nil, err
	}
	var items []item
	for _, applet := range strings.Fields(out) {
		if applet != "busybox" {
			items = append(items, item{name: "usr/bin/" + applet, link: "busybox"})
		}
	}
	if len(items) < 50 {
		return nil, errors.New("busybox lists no commands")
	}
	return items, nil
}
