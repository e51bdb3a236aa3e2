package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/fcvm/fcvm/internal/vm"
)

// maxEnvFile bounds an environment file, bytes. The kernel takes about 2 MiB
// of environment in all (execve(2)).
const maxEnvFile = 8 << 20

// environment returns what --env-file and -e give, as KEY=VALUE, the later
// over the earlier and -e over all files. A name without a value takes it
// from fcvm's own environment, and is left out when it has none.
func environment(files, vars []string, lookup func(string) (string, bool)) ([]string, error) {
	all, _, err := readEnvFiles(files, lookup)
	if err != nil {
		return nil, err
	}
	for _, v := range vars {
		name, _, given := strings.Cut(v, "=")
		if name == "" {
			return nil, fmt.Errorf("%w: --env %q: the variable has no name", vm.ErrInvalid, v)
		}
		if given {
			all = append(all, v)
		} else if value, ok := lookup(name); ok {
			all = append(all, name+"="+value)
		}
	}
	return lastOfEach(all), nil
}

// readEnvFiles returns what files set, and their text.
func readEnvFiles(files []string, lookup func(string) (string, bool)) (vars []string, text []byte, err error) {
	for _, path := range files {
		b, err := envFileText(path)
		var some []string
		if err == nil {
			some, err = parseEnvFile(b, lookup)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read --env-file %s: %w", path, err)
		}
		vars, text = append(vars, some...), append(append(text, b...), '\n')
	}
	return vars, text, nil
}

// oneEnvFile makes one file of all --env-file, which this process can read again
// and another one can inherit: what was given may be a pipe, or /dev/stdin, and
// be read once and only here. It is what the files have, for a value that a name
// alone takes from here may be more than a line. nil: there is none.
func (o *runOptions) oneEnvFile(lookup func(string) (string, bool)) (*os.File, error) {
	if len(o.envFiles) == 0 {
		return nil, nil
	}
	_, text, err := readEnvFiles(o.envFiles, lookup) // errors tell the file's name, and its own lines
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("env", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("keep what --env-file sets: %w", err)
	}
	f := os.NewFile(uintptr(fd), "env")
	if _, err := f.Write(text); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("keep what --env-file sets: %w", err)
	}
	o.envFiles = []string{fmt.Sprintf("/proc/self/fd/%d", fd)}
	return f, nil
}

// lastOfEach keeps the last value of each variable, in the order in which
// they first came.
func lastOfEach(vars []string) []string {
	var kept []string
	index := map[string]int{}
	for _, v := range vars {
		name, _, _ := strings.Cut(v, "=")
		if i, ok := index[name]; ok {
			kept[i] = v
			continue
		}
		index[name] = len(kept)
		kept = append(kept, v)
	}
	return kept
}

// envFileText is what is in an environment file, without a byte order mark.
func envFileText(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxEnvFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxEnvFile {
		return nil, fmt.Errorf("%w: it is larger than %d MiB", vm.ErrInvalid, maxEnvFile>>20)
	}
	return bytes.TrimPrefix(b, []byte("\ufeff")), nil
}

// parseEnvFile reads the format of Docker's --env-file: one KEY=VALUE or KEY
// per line; white space before a name is dropped, values are taken as they
// are, without quotes or escapes; empty lines and those that begin with # are
// left out. See docker/cli, pkg/kvfile.
func parseEnvFile(text []byte, lookup func(string) (string, bool)) ([]string, error) {
	var vars []string
	for n, line := range bytes.Split(text, []byte("\n")) {
		v, err := parseEnvLine(strings.TrimSuffix(string(line), "\r"), lookup)
		if err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", vm.ErrInvalid, n+1, err)
		}
		if v != "" {
			vars = append(vars, v)
		}
	}
	return vars, nil
}

// parseEnvLine returns KEY=VALUE, or nothing.
func parseEnvLine(line string, lookup func(string) (string, bool)) (string, error) {
	if !utf8.ValidString(line) {
		return "", errors.New("it is not UTF-8")
	}
	line = strings.TrimLeftFunc(line, unicode.IsSpace)
	if line == "" || line[0] == '#' {
		return "", nil
	}
	name, value, given := strings.Cut(line, "=")
	switch {
	case name == "":
		return "", fmt.Errorf("%q has no variable name", line)
	case strings.ContainsFunc(name, unicode.IsSpace):
		return "", fmt.Errorf("variable %q has white space in its name", name)
	case given:
		return name + "=" + value, nil
	}
	if value, ok := lookup(name); ok {
		return name + "=" + value, nil
	}
	return "", nil
}
