package image

import (
	"fmt"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// kind is where a reference points.
type kind int

const (
	kindRegistry kind = iota
	kindOCIArchive
	kindDockerArchive
	kindOCIDir
	kindContainersStorage
	kindDockerDaemon
	kindID // of an image in the cache
)

// prefixes of references that are files, as skopeo and Podman have them:
// https://github.com/containers/image/blob/main/docs/containers-transports.5.md
var prefixes = []struct {
	text string
	kind kind
}{
	{"oci-archive:", kindOCIArchive},
	{"docker-archive:", kindDockerArchive},
	{"oci:", kindOCIDir},
	{"containers-storage:", kindContainersStorage},
	{"docker-daemon:", kindDockerDaemon},
}

// reference is a parsed image reference.
type reference struct {
	text   string // as given
	kind   kind
	path   string         // of an archive or directory; the name in another's storage
	tag    string         // which of its images; empty: the only one
	name   name.Reference // in a registry, with Docker's defaults filled in
	digest string         // of kindID
}

// parseReference understands what docker run takes, and the file prefixes.
func parseReference(text string) (reference, error) {
	for _, p := range prefixes {
		rest, ok := strings.CutPrefix(text, p.text)
		if !ok {
			continue
		}
		r := reference{text: text, kind: p.kind, path: rest}
		switch p.kind {
		case kindOCIArchive, kindDockerArchive, kindOCIDir:
			r.path, r.tag = splitPath(rest)
		case kindContainersStorage, kindDockerDaemon:
			if strings.HasPrefix(rest, "-") || strings.ContainsAny(rest, " \t\n") {
				return reference{}, fmt.Errorf("%w: %q: %q is no name", ErrReference, text, rest)
			}
		}
		if r.path == "" {
			what := "file"
			if p.kind == kindContainersStorage || p.kind == kindDockerDaemon {
				what = "image"
			}
			return reference{}, fmt.Errorf("%w: %q names no %s after %q", ErrReference, text, what, p.text)
		}
		return r, nil
	}
	if isDigest(text) {
		return reference{text: text, kind: kindID, digest: text}, nil
	}
	if i := strings.Index(text, "://"); i > 0 {
		return reference{}, fmt.Errorf("%w: %q: leave out %q", ErrReference, text, text[:i+3])
	}
	n, err := name.ParseReference(text)
	if err != nil {
		return reference{}, fmt.Errorf("%w: %q: %s; examples: nginx, ghcr.io/org/app:tag, name@sha256:…, oci-archive:FILE", ErrReference, text, reason(text, err))
	}
	return reference{text: text, kind: kindRegistry, name: n}, nil
}

// reason says what is wrong with a registry reference in words that fit the
// usual mistakes, else in the parser's.
func reason(text string, err error) string {
	switch {
	case text == "":
		return "it is empty"
	case strings.ContainsAny(text, " \t\n"):
		return "it has spaces in it"
	case strings.ToLower(text) != text && !strings.Contains(text, "@"):
		return "repository names are lower case"
	}
	return err.Error()
}

// splitPath parts PATH[:TAG]. The path ends at the first colon, unless a file
// of the whole name exists.
func splitPath(s string) (path, tag string) {
	if _, err := os.Lstat(s); err == nil {
		return s, ""
	}
	path, tag, _ = strings.Cut(s, ":")
	return path, tag
}
