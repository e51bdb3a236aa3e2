package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// apt downloads packages of the host's distribution. It has sources and state
// of its own, so that the host's stay as they are, and installs nothing.
type apt struct {
	dir     string
	sources string // one-line form
	suite   string // the host's codename
}

// newerSuite has, for a release whose own QEMU is too old, one that will do.
var newerSuite = map[string]string{"bookworm": "trixie"}

// privateApt makes an apt in dir with the archive that the host's apt uses: the
// host's release, and with newer also one that has a newer QEMU.
func privateApt(ctx context.Context, dir string, newer bool) (*apt, error) {
	a := &apt{dir: dir}
	var err error
	if a.sources, a.suite, err = hostArchive(ctx); err != nil {
		return nil, err
	}
	list := a.sources
	if suite := newerSuite[a.suite]; newer && suite != "" {
		list += strings.Replace(a.sources, " "+a.suite+" ", " "+suite+" ", 1)
	}
	for _, d := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "sources.list"), []byte(list), 0o644); err != nil {
		return nil, err
	}
	_, err = output(ctx, dir, "apt-get", a.args("update", "-q")...)
	return a, err
}

// args puts the options before an apt-get command. To this apt nothing is
// installed: what it plans is all that a package needs.
func (a *apt) args(args ...string) []string {
	return append([]string{
		"-o", "Dir::Etc::sourcelist=" + filepath.Join(a.dir, "sources.list"), "-o", "Dir::Etc::sourceparts=-",
		"-o", "Dir::State=" + filepath.Join(a.dir, "state"), "-o", "Dir::Cache=" + filepath.Join(a.dir, "cache"),
		"-o", "Dir::State::status=/dev/null", "-o", "APT::Sandbox::User=",
	}, args...)
}

// archiveTargets has one line per index of the host's apt.
const archiveTargets = "$(CREATED_BY) $(CODENAME) $(COMPONENT) $(REPO_URI) $(SIGNED_BY)"

// hostArchive returns the host's main archive in the form of sources.list, and
// the release's name.
func hostArchive(ctx context.Context) (source, suite string, err error) {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", "", err
	}
	m := regexp.MustCompile(`(?m)^VERSION_CODENAME="?(\w+)"?$`).FindSubmatch(release)
	if m == nil {
		return "", "", errors.New("the host is no Debian: give a newer QEMU with -qemu")
	}
	suite = string(m[1])
	out, err := output(ctx, "/", "apt-get", "indextargets", "--format", archiveTargets)
	if err != nil {
		return "", "", err
	}
	for line := range bytes.Lines(out) {
		f := strings.Fields(string(line))
		if len(f) < 4 || f[0] != "Packages" || f[1] != suite || f[2] != "main" {
			continue
		}
		option := ""
		if len(f) == 5 && filepath.IsAbs(f[4]) {
			option = "[signed-by=" + f[4] + "] "
		}
		return fmt.Sprintf("deb %s%s %s main\n", option, f[3], suite), suite, nil
	}
	return "", "", fmt.Errorf("the host's apt has no index of %s main; run apt-get update", suite)
}

var planned = regexp.MustCompile(`^Inst (\S+) (?:\[\S*\] )?\((\S+) `)

// plan returns the packages (name=version) that make up what is asked for.
func (a *apt) plan(ctx context.Context, install ...string) ([]string, error) {
	args := append([]string{"install", "-s", "-q", "--no-install-recommends"}, install...)
	out, err := output(ctx, a.dir, "apt-get", a.args(args...)...)
	if err != nil {
		return nil, err
	}
	var packages []string
	for line := range bytes.Lines(out) {
		if m := planned.FindSubmatch(line); m != nil {
			packages = append(packages, fmt.Sprintf("%s=%s", m[1], m[2]))
		}
	}
	return packages, nil
}

// unpack downloads packages and unpacks all of them into root.
func (a *apt) unpack(ctx context.Context, root string, packages []string) error {
	debs, err := os.MkdirTemp(a.dir, "debs-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(debs) }()
	if _, err := output(ctx, debs, "apt-get", a.args(append([]string{"download", "-q"}, packages...)...)...); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	for _, f := range files {
		if _, err := output(ctx, debs, "dpkg-deb", "-x", f, root); err != nil {
			return err
		}
	}
	return nil
}
