package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/google/go-containerregistry/pkg/name"
)

// registries is what Podman's registries.conf says: which registry a short
// name means, and by which mirrors a registry can be asked.
// https://github.com/containers/image/blob/main/docs/containers-registries.conf.5.md
type registries struct {
	Search            []string          `toml:"unqualified-search-registries"`
	ShortNameMode     string            `toml:"short-name-mode"`
	CredentialHelpers []string          `toml:"credential-helpers"`
	Registries        []registryConfig  `toml:"registry"`
	Aliases           map[string]string `toml:"aliases"`
}

type registryConfig struct {
	Prefix           string         `toml:"prefix"`
	Location         string         `toml:"location"`
	Insecure         bool           `toml:"insecure"`
	Blocked          bool           `toml:"blocked"`
	MirrorDigestOnly bool           `toml:"mirror-by-digest-only"`
	Mirrors          []mirrorConfig `toml:"mirror"`
}

type mirrorConfig struct {
	Location string `toml:"location"`
	Insecure bool   `toml:"insecure"`
	Pull     string `toml:"pull-from-mirror"` // all, digest-only or tag-only
}

const (
	maxRegistriesFile = 4 << 20
	dockerHub         = "docker.io"
)

// loadRegistries reads $CONTAINERS_REGISTRIES_CONF alone if it is set, else
// what Podman reads: ~/.config/containers/registries.conf or
// /etc/containers/registries.conf, then both places' registries.conf.d, then
// the short names that Podman has asked its user about. What is missing is as
// good as empty.
func loadRegistries(getenv func(string) string) (registries, error) {
	var r registries
	if path := getenv("CONTAINERS_REGISTRIES_CONF"); path != "" {
		return r, r.merge(path)
	}
	config, cache := getenv("XDG_CONFIG_HOME"), getenv("XDG_CACHE_HOME")
	if home := getenv("HOME"); home != "" {
		if config == "" {
			config = filepath.Join(home, ".config")
		}
		if cache == "" {
			cache = filepath.Join(home, ".cache")
		}
	}
	const system = "/etc/containers"
	main := filepath.Join(system, "registries.conf")
	if own := filepath.Join(config, "containers", "registries.conf"); config != "" {
		if _, err := os.Stat(own); err == nil {
			main = own
		}
	}
	files := []string{main}
	for _, dir := range []string{system, filepath.Join(config, "containers")} {
		found, err := filepath.Glob(filepath.Join(dir, "registries.conf.d", "*.conf"))
		if err != nil {
			return r, err
		}
		files = append(files, found...) // Glob sorts
	}
	if cache != "" {
		files = append(files, filepath.Join(cache, "containers", "short-name-aliases.conf"))
	}
	for _, f := range files {
		if err := r.merge(f); err != nil {
			return r, err
		}
	}
	return r, nil
}

// merge reads one more file, whose word counts for more than what there is.
func (r *registries) merge(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read registries: %w", err)
	}
	defer func() { _ = f.Close() }()
	raw, err := readBounded(f, maxRegistriesFile)
	if err != nil {
		return fmt.Errorf("read registries: %s: %w", path, err)
	}
	var more registries
	if err := toml.Unmarshal(raw, &more); err != nil {
		return fmt.Errorf("read registries: %s: %w", path, err)
	}
	if more.Search != nil {
		r.Search = more.Search
	}
	if more.ShortNameMode != "" {
		r.ShortNameMode = more.ShortNameMode
	}
	if more.CredentialHelpers != nil {
		r.CredentialHelpers = more.CredentialHelpers
	}
	for _, c := range more.Registries {
		if c.Prefix == "" {
			c.Prefix = c.Location
		}
		if c.Prefix == "" {
			return fmt.Errorf("read registries: %s: a [[registry]] has neither prefix nor location", path)
		}
		if slices.ContainsFunc(c.Mirrors, func(m mirrorConfig) bool { return m.Location == "" }) {
			return fmt.Errorf("read registries: %s: a mirror of %s has no location", path, c.Prefix)
		}
		r.Registries = slices.DeleteFunc(r.Registries, func(o registryConfig) bool { return o.Prefix == c.Prefix })
		r.Registries = append(r.Registries, c)
	}
	for short, full := range more.Aliases {
		if r.Aliases == nil {
			r.Aliases = map[string]string{}
		}
		if full == "" { // it takes an alias back
			delete(r.Aliases, short)
		} else {
			r.Aliases[short] = full
		}
	}
	return nil
}

// isShort reports whether a name says no registry.
func isShort(text string) bool {
	first, _, several := strings.Cut(text, "/")
	return !several || first != "localhost" && !strings.ContainsAny(first, ".:")
}

// meanings returns what a reference may stand for in registries, the first
// choice first. Only a short name can stand for several.
func (r *registries) meanings(text string) ([]name.Reference, error) {
	if !isShort(text) {
		n, err := name.ParseReference(text)
		return []name.Reference{n}, err
	}
	repo, rest := text, ""
	if i := strings.IndexAny(text, ":@"); i >= 0 {
		repo, rest = text[:i], text[i:]
	}
	var texts []string
	switch full, ok := r.Aliases[repo]; {
	case ok:
		texts = []string{full + rest}
	case len(r.Search) == 0:
		texts = []string{dockerHub + "/" + text}
	case len(r.Search) > 1 && r.ShortNameMode == "enforcing":
		return nil, fmt.Errorf("%w: %q may be in %s: say which, as in %s/%s (short-name-mode is enforcing)",
			ErrReference, text, strings.Join(r.Search, ", "), r.Search[0], text)
	default:
		for _, s := range r.Search {
			texts = append(texts, s+"/"+text)
		}
	}
	var out []name.Reference
	for _, t := range texts {
		n, err := name.ParseReference(t)
		if err != nil {
			return nil, fmt.Errorf("%w: %q, which registries.conf makes of %q: %w", ErrReference, t, text, err)
		}
		out = append(out, n)
	}
	return out, nil
}

// endpoint is a place to ask for an image.
type endpoint struct {
	ref      name.Reference
	insecure bool // certificates are not checked, and plain HTTP will do
}

// endpoints returns where an image can be had: a registry's mirrors, then the
// registry itself.
func (r *registries) endpoints(ref name.Reference) ([]endpoint, error) {
	full := fullName(ref)
	c, ok := r.find(full)
	if !ok {
		return []endpoint{{ref: ref}}, nil
	}
	if c.Blocked {
		return nil, fmt.Errorf("%w: %s is blocked in registries.conf", ErrRegistry, c.Prefix)
	}
	_, byDigest := ref.(name.Digest)
	var out []endpoint
	add := func(location string, insecure bool) error {
		text := full
		if location != "" {
			text = location + full[prefixLength(full, c.Prefix):]
		}
		var o []name.Option
		if insecure {
			o = append(o, name.Insecure)
		}
		n, err := name.ParseReference(text, o...)
		if err != nil {
			return fmt.Errorf("%w: %q, which registries.conf makes of %q: %w", ErrReference, text, full, err)
		}
		out = append(out, endpoint{ref: n, insecure: insecure})
		return nil
	}
	for _, m := range c.Mirrors {
		digestOnly := m.Pull == "digest-only" || m.Pull == "" && c.MirrorDigestOnly
		if digestOnly && !byDigest || m.Pull == "tag-only" && byDigest {
			continue
		}
		if err := add(m.Location, m.Insecure); err != nil {
			return nil, err
		}
	}
	return out, add(c.Location, c.Insecure)
}

// find returns the entry with the longest prefix that fits.
func (r *registries) find(full string) (registryConfig, bool) {
	var best registryConfig
	found := false
	for _, c := range r.Registries {
		if prefixLength(full, c.Prefix) >= 0 && (!found || len(c.Prefix) > len(best.Prefix)) {
			best, found = c, true
		}
	}
	return best, found
}

// prefixLength is how much of a name a prefix stands for, whole components; -1:
// it does not fit. "*.example.com" stands for any host below example.com,
// without its port.
func prefixLength(full, prefix string) int {
	if domain, ok := strings.CutPrefix(prefix, "*."); ok {
		host := full[:max(0, strings.IndexAny(full, ":/"))]
		if strings.HasSuffix(host, "."+domain) {
			return len(host)
		}
		return -1
	}
	rest, ok := strings.CutPrefix(full, prefix)
	if ok && (rest == "" || strings.ContainsRune("/:@", rune(rest[0]))) {
		return len(prefix)
	}
	return -1
}

// fullName is a reference as people write it in full.
func fullName(ref name.Reference) string {
	sep := ":"
	if _, ok := ref.(name.Digest); ok {
		sep = "@"
	}
	return repositoryName(ref) + sep + ref.Identifier()
}

func repositoryName(ref name.Reference) string {
	return hostOf(ref) + "/" + ref.Context().RepositoryStr()
}

// hostOf is the registry, HOST[:PORT], as people call it.
func hostOf(ref name.Reference) string {
	if host := ref.Context().RegistryStr(); host != name.DefaultRegistry {
		return host
	}
	return dockerHub
}
