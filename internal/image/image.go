// Package image turns image references into disks: it finds an image in a
// registry, an archive or a directory, merges its layers into one read-only
// ext4 file, and keeps that in a cache.
//
// The cache is keyed by the digest of the image's configuration, which names
// the digests of all layers' contents: the same image from a registry, an
// OCI archive and a Docker archive is one disk, whatever its compression.
// Nothing of an image is believed before its digest was checked, and every
// size and number in it is bounded.
package image

import (
	"errors"
	"os"
	"time"

	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/rootfs"
)

// Sentinel errors of this package. The messages around them name the
// reference and say what to do.
var (
	// ErrReference: the text is no image reference.
	ErrReference = errors.New("invalid image reference")
	// ErrNotFound: there is no such image where the reference points.
	ErrNotFound = errors.New("no such image")
	// ErrRegistry: the registry does not exist, does not answer or fails.
	ErrRegistry = errors.New("registry cannot be used")
	// ErrUnauthorized: the registry wants other credentials.
	ErrUnauthorized = errors.New("registry refuses access")
	// ErrPlatform: the image exists, but not for this architecture.
	ErrPlatform = errors.New("image is for another platform")
	// ErrCorrupt: the image is truncated, damaged or not what a digest says.
	ErrCorrupt = rootfs.ErrCorrupt
	// ErrUnsafe: a layer names something outside of the image, or loops.
	ErrUnsafe = rootfs.ErrUnsafe
	// ErrTooLarge: the image is over one of the Limits.
	ErrTooLarge = rootfs.ErrTooLarge
	// ErrNoSpace: the file system that holds the cache is full.
	ErrNoSpace = rootfs.ErrNoSpace
)

// Pull says when a registry is asked for an image. Archives and directories
// are always read: that is cheap, and they are here.
type Pull string

// The ways to pull.
const (
	PullMissing Pull = "missing" // when the reference was never resolved here; the default
	PullAlways  Pull = "always"  // a tag may have moved
	PullNever   Pull = "never"
)

// EnsureOptions for Ensure. The zero value is usable.
type EnsureOptions struct {
	Pull     Pull              // empty: PullMissing
	Platform string            // "linux/amd64[/variant]"; empty: this machine's
	Access   Access            // how registries are asked
	Keep     bool              // keep the layers of an archive, too, as those from a registry always are
	Progress progress.Reporter // nil: progress.Discard
}

// Image is an image that is in the cache, and stays there until Release.
type Image struct {
	Reference string // as it was given
	Digest    string // of its configuration: "sha256:…"
	Config    Config
	Disk      string // path of the ext4 file; read-only, shared by everyone
	Size      int64  // of Disk in bytes, holes included
	Cached    bool   // nothing had to be converted

	held *os.File // keeps it in the cache
}

// Config is what an image says of the process to run. See
// https://github.com/opencontainers/image-spec/blob/main/config.md
type Config struct {
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Cmd        []string          `json:"cmd,omitempty"`
	Env        []string          `json:"env,omitempty"` // KEY=VALUE
	WorkDir    string            `json:"work_dir,omitempty"`
	User       string            `json:"user,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	Volumes    []string          `json:"volumes,omitempty"` // sorted
	StopSignal string            `json:"stop_signal,omitempty"`
	Health     *Health           `json:"health,omitempty"`
}

// Health is an image's health check, as Docker's configuration has it.
type Health struct {
	Test        []string      `json:"test"`
	Interval    time.Duration `json:"interval,omitempty"`
	Timeout     time.Duration `json:"timeout,omitempty"`
	StartPeriod time.Duration `json:"start_period,omitempty"`
	Retries     int           `json:"retries,omitempty"`
}
