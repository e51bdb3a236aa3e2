package setup

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// aptSource is one archive of packages, as sources.list(5) has it.
type aptSource struct {
	uri, suite string
	components []string
	signedBy   string // path of a keyring; empty: the keys that apt trusts anyway
}

// String returns the one-line form.
func (a aptSource) String() string {
	option := ""
	if a.signedBy != "" {
		option = "[signed-by=" + a.signedBy + "] "
	}
	return "deb " + option + a.uri + " " + a.suite + " " + strings.Join(a.components, " ")
}

// hostSources returns where the host's apt gets its own distribution from,
// with the host's release replaced by suite. Archives of third parties, which
// name their suites otherwise, are left out. dir is /etc/apt.
func hostSources(dir, hostSuite, suite string) []aptSource {
	files := []string{filepath.Join(dir, "sources.list")}
	for _, pattern := range []string{"*.list", "*.sources"} {
		more, err := filepath.Glob(filepath.Join(dir, "sources.list.d", pattern))
		if err == nil {
			files = append(files, more...)
		}
	}
	var found []aptSource
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // mmdebstrap knows a mirror of its own
		}
		sources := parseOneLine(b)
		if filepath.Ext(path) == ".sources" {
			sources = parseDeb822(b)
		}
		for _, a := range sources {
			pocket, ok := strings.CutPrefix(a.suite, hostSuite)
			if !ok || !slices.Contains([]string{"", "-updates", "-security", "/updates"}, pocket) {
				continue
			}
			a.suite = suite + pocket
			a.uri = resolveMirrorList(a.uri)
			if a.uri != "" && !slices.ContainsFunc(found, func(b aptSource) bool { return b.String() == a.String() }) {
				found = append(found, a)
			}
		}
	}
	return found
}

// resolveMirrorList returns the first mirror of a list that lies on the host
// (apt-transport-mirror(1)), as images for clouds have it. What is no archive
// on the network gives "".
func resolveMirrorList(uri string) string {
	path, ok := strings.CutPrefix(uri, "mirror+file:")
	if !ok {
		if strings.HasPrefix(uri, "cdrom:") || strings.HasPrefix(uri, "mirror+") {
			return ""
		}
		return uri
	}
	b, err := os.ReadFile("/" + strings.TrimLeft(path, "/"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 0 && !strings.HasPrefix(f[0], "#") {
			return f[0]
		}
	}
	return ""
}

// parseOneLine reads "deb [option=value …] URI SUITE COMPONENT…" lines.
func parseOneLine(b []byte) []aptSource {
	var found []aptSource
	for line := range strings.Lines(string(b)) {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb ")
		if !ok {
			continue
		}
		var a aptSource
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			options, after, ok := strings.Cut(rest[1:], "]")
			if !ok {
				continue
			}
			for _, o := range strings.Fields(options) {
				if v, ok := strings.CutPrefix(o, "signed-by="); ok {
					a.signedBy = v
				}
			}
			rest = after
		}
		f := strings.Fields(rest)
		if len(f) < 3 {
			continue
		}
		a.uri, a.suite, a.components = f[0], f[1], f[2:]
		found = append(found, a)
	}
	return found
}

// parseDeb822 reads stanzas of "Field: value". One whose key is in the stanza
// itself has no one-line form and is left out.
func parseDeb822(b []byte) []aptSource {
	var found []aptSource
	stanza := map[string]string{}
	last := ""
	flush := func() {
		found = append(found, stanzaSources(stanza)...)
		clear(stanza)
		last = ""
	}
	s := bufio.NewScanner(bytes.NewReader(b))
	for s.Scan() {
		line := s.Text()
		switch {
		case strings.TrimSpace(line) == "":
			flush()
		case strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t"):
			stanza[last] += "\n" + line
		default:
			key, value, ok := strings.Cut(line, ":")
			if ok {
				last = strings.ToLower(key)
				stanza[last] = value
			}
		}
	}
	flush()
	return found
}

func stanzaSources(stanza map[string]string) []aptSource {
	if !slices.Contains(strings.Fields(stanza["types"]), "deb") || strings.EqualFold(strings.TrimSpace(stanza["enabled"]), "no") {
		return nil
	}
	signedBy := strings.TrimSpace(stanza["signed-by"])
	components := strings.Fields(stanza["components"])
	if strings.ContainsAny(signedBy, " \n") || len(components) == 0 {
		return nil
	}
	var found []aptSource
	for _, uri := range strings.Fields(stanza["uris"]) {
		for _, suite := range strings.Fields(stanza["suites"]) {
			found = append(found, aptSource{uri: uri, suite: suite, components: components, signedBy: signedBy})
		}
	}
	return found
}

// aptOptions returns how the host's apt reaches its mirrors: proxies, keys of
// servers and the checks that are off.
func aptOptions(ctx context.Context) []string {
	out, err := command(ctx, "/", "apt-config", "dump")
	if err != nil {
		return nil
	}
	return networkOptions(out)
}

// networkOptions picks from apt-config's lines, each of which is `Name "value";`.
func networkOptions(dump []byte) []string {
	var options []string
	for line := range strings.Lines(string(dump)) {
		line = strings.TrimSpace(line)
		name, value, ok := strings.Cut(line, " ")
		if !ok || value == `"";` {
			continue
		}
		for _, prefix := range []string{"Acquire::http::", "Acquire::https::", "Acquire::Check-", "Acquire::Retries", "Acquire::ForceIPv"} {
			if strings.HasPrefix(name, prefix) {
				options = append(options, line)
				break
			}
		}
	}
	return options
}
