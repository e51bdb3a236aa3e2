package image

import (
	"bytes"
	"io"
	"os/exec"
	"strings"
	"testing"
)

func TestDecompress(t *testing.T) {
	text := strings.Repeat("some text\n", 10000)
	for _, program := range []string{"cat", "gzip", "bzip2", "xz", "zstd"} {
		t.Run(program, func(t *testing.T) {
			path, err := exec.LookPath(program)
			if err != nil {
				t.Skip(err)
			}
			cmd := exec.CommandContext(t.Context(), path)
			cmd.Stdin = strings.NewReader(text)
			packed, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(Decompress(bytes.NewReader(packed))); err != nil || string(got) != text {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if program == "cat" {
				return
			}
			if _, err := io.Copy(io.Discard, Decompress(bytes.NewReader(packed[:len(packed)/2]))); err == nil {
				t.Error("half of it was enough")
			}
		})
	}
	for _, short := range []string{"", "x", "BZ"} {
		if got, err := io.ReadAll(Decompress(strings.NewReader(short))); err != nil || string(got) != short {
			t.Errorf("%q: %q, %v", short, got, err)
		}
	}
}
