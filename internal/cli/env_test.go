package cli

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fcvm/fcvm/internal/vm"
)

func writeEnvFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEnvFilesAreReadAsDockerDoes(t *testing.T) {
	path := writeEnvFile(t, "\ufeffFIRST=1\n"+
		"# a comment\n"+
		"\n"+
		"   \t\n"+
		"  INDENTED=a b  \n"+
		"QUOTED=\"as it is\"\n"+
		"EQUALS=a=b\n"+
		"EMPTY=\n"+
		"HOST\n"+
		"UNSET\n"+
		"CRLF=x\r\n"+
		"HASH=a # b\n"+
		"FIRST=2\n"+
		"LAST=no line feed")
	got, err := environment([]string{path}, nil, lookupIn(map[string]string{"HOST": "from here"}))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"FIRST=2", "INDENTED=a b  ", `QUOTED="as it is"`, "EQUALS=a=b", "EMPTY=", "HOST=from here", "CRLF=x", "HASH=a # b",
		"LAST=no line feed",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestEnvFilesThatCannotBeMeantAreRefusedByLine(t *testing.T) {
	for content, want := range map[string]string{
		"A=1\n=x\n":       `line 2: "=x" has no variable name`,
		"A B=1\n":         `line 1: variable "A B" has white space`,
		"export A=1\n":    `"export A"`,
		"A=1\n\nB=\xff\n": "line 3: it is not UTF-8",
	} {
		_, err := environment([]string{writeEnvFile(t, content)}, nil, lookupIn(nil))
		if !errors.Is(err, vm.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q in it", content, err, want)
		}
	}
	_, err := environment([]string{writeEnvFile(t, "A="+strings.Repeat("x", maxEnvFile))}, nil, lookupIn(nil))
	if !errors.Is(err, vm.ErrInvalid) {
		t.Errorf("a file over the limit: %v", err)
	}
}

func TestMemoryTakesUnits(t *testing.T) {
	for s, want := range map[string]int{
		"512": 512, "512m": 512, "512M": 512, "512MB": 512, "512MiB": 512, "2g": 2048, "2GiB": 2048, "1.5g": 1536, "0.5G": 512, "1t": 1 << 20,
	} {
		if got, err := parseMemory(s); err != nil || got != want {
			t.Errorf("parseMemory(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "m", "-1", "1k", "1.3m", "512 m", "99999999999g", "1e3", "0x10", "½g"} {
		if got, err := parseMemory(s); err == nil {
			t.Errorf("parseMemory(%q) = %d", s, got)
		}
	}
}

func FuzzParseMemory(f *testing.F) {
	for _, s := range []string{"1", "1.5g", "9999999999999999999999999999t", "."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseMemory(s); err == nil && n < 0 {
			t.Errorf("parseMemory(%q) = %d", s, n)
		}
	})
}
