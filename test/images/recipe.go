package images

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const gzipLevel = gzip.BestSpeed

const (
	searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	redisUser  = 101
	webUser    = 33 // Debian's www-data
)

// recipe says what an image is made of.
type recipe struct {
	name     string
	packages []string
	keep     func(name string) bool // which files of the packages; nil: all
	items    []item                 // on top
	applets  bool                   // links to busybox for all its commands
	config   v1.Config
}

// recipes are all images. Their configurations follow those of the images of
// the same name on Docker Hub.
func recipes() []recipe {
	return []recipe{
		{
			name: "busybox", packages: []string{"busybox-static"}, applets: true,
			keep:   func(name string) bool { return name == "usr/bin/busybox" || name == "usr" || name == "usr/bin" },
			config: v1.Config{Env: []string{searchPath}, Cmd: []string{"sh"}},
		},
		{
			name: "nginx", packages: []string{"nginx", "base-files", "dash"},
			items: []item{
				{name: "etc/nginx/sites-enabled/default", content: nginxSite},
				{name: "var/www/html/index.html", content: "<!DOCTYPE html><title>Welcome to nginx!</title><h1>Welcome to nginx!</h1>\n"},
				{name: "var/log/nginx/access.log", link: "/dev/stdout"},
				{name: "var/log/nginx/error.log", link: "/dev/stderr"},
				{name: "usr/bin/sh", link: "dash"},
			},
			config: v1.Config{
				Env: []string{searchPath}, Cmd: []string{"nginx", "-g", "daemon off;"},
				ExposedPorts: map[string]struct{}{"80/tcp": {}}, StopSignal: "SIGQUIT",
			},
		},
		{
			name: "redis", packages: []string{"redis-server", "base-files", "dash"},
			items: []item{
				{name: "data/", uid: redisUser},
				{name: "usr/bin/sh", link: "dash"},
			},
			config: v1.Config{
				Env: []string{searchPath}, Entrypoint: []string{"redis-server"}, Cmd: []string{"--save", "", "--protected-mode", "no"},
				User: "redis", WorkingDir: "/data", Volumes: map[string]struct{}{"/data": {}},
				ExposedPorts: map[string]struct{}{"6379/tcp": {}},
				Healthcheck:  &v1.HealthConfig{Test: []string{"CMD", "redis-cli", "ping"}, Interval: 30e9, Timeout: 5e9, Retries: 3},
			},
		},
		{
			name: "python3", packages: []string{"python3", "base-files", "dash"},
			items: []item{{name: "usr/src/app/"}, {name: "usr/bin/sh", link: "dash"}},
			config: v1.Config{
				Env: []string{searchPath, "LANG=C.UTF-8"}, Cmd: []string{"python3"}, WorkingDir: "/usr/src/app",
				Labels: map[string]string{"org.opencontainers.image.title": "python3"},
			},
		},
		{
			// Its library for graphs needs Python, which is left out.
			name: "fio", packages: []string{"fio", "coreutils", "base-files", "dash"},
			keep:   func(name string) bool { return !strings.Contains(name, "python") },
			items:  []item{{name: "usr/bin/sh", link: "dash"}},
			config: v1.Config{Env: []string{searchPath}, Cmd: []string{"fio", "--version"}},
		},
		{
			// What people use a terminal for.
			name: "terminal", packages: []string{"bash", "coreutils", "grep", "less", "libc-bin", "ncurses-bin", "ncurses-base", "procps", "tmux", "vim", "base-files", "dash"},
			items: []item{
				{name: "usr/bin/sh", link: "dash"},
				{name: "usr/bin/vim", link: "vim.basic"}, // as its package's script has it
			},
			config: v1.Config{Env: []string{searchPath, "LANG=C.UTF-8"}, Cmd: []string{"bash"}},
		},
	}
}

const nginxSite = `server {
	listen 80 default_server;
	root /var/www/html;
	index index.html;
}
`

const passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
redis:x:101:101:redis:/data:/usr/sbin/nologin
user:x:1000:1000:user:/home/user:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
`

const group = `root:x:0:
daemon:x:1:
tty:x:5:
adm:x:4:
www-data:x:33:
redis:x:101:
user:x:1000:
nogroup:x:65534:
`

// skeleton is the lowest layer of all images.
func skeleton() []item {
	items := []item{
		{name: "usr/"},
		{name: "usr/bin/"},
		{name: "usr/sbin/"},
		{name: "usr/lib/"},
		{name: "usr/lib64/"},
		{name: "dev/"},
		{name: "etc/"},
		{name: "proc/"},
		{name: "run/"},
		{name: "sys/"},
		{name: "var/"},
		{name: "home/"},
		{name: "home/user/", uid: 1000},
		{name: "root/", mode: 0o700},
		{name: "tmp/", mode: 0o1777},
		{name: "var/tmp/", mode: 0o1777},
		{name: "etc/passwd", content: passwd},
		{name: "etc/group", content: group},
		{name: "etc/nsswitch.conf", content: "passwd: files\ngroup: files\nhosts: files dns\n"},
	}
	for _, l := range topLinks() {
		items = append(items, item{name: l, link: "usr/" + l})
	}
	return items
}

func recipeOf(image string) (recipe, error) {
	for _, r := range recipes() {
		if r.name == image {
			return r, nil
		}
	}
	return recipe{}, fmt.Errorf("%w: %q; there are %s", ErrUnknown, image, strings.Join(Names(), ", "))
}

func stringReader(s string) io.Reader { return strings.NewReader(s) }

// build makes the image; its files go to tmp, where they must stay as long as
// the image is used.
func (r recipe) build(ctx context.Context, tmp string) (v1.Image, error) {
	debs, err := download(ctx, tmp, r.packages...)
	if err != nil {
		return nil, err
	}
	items := r.items
	var layers []v1.Layer
	add := func(fill func(*layerWriter) error) error {
		w, err := newLayer(filepath.Join(tmp, fmt.Sprintf("layer%d.tar", len(layers))))
		if err != nil {
			return err
		}
		if err := fill(w); err != nil {
			_ = w.f.Close()
			return err
		}
		l, err := w.finish()
		layers = append(layers, l)
		return err
	}
	if r.applets {
		links, err := appletLinks(ctx, debs, tmp)
		if err != nil {
			return nil, err
		}
		items = append(items, links...)
	}
	if err := add(fillItems(skeleton())); err != nil {
		return nil, err
	}
	if err := add(func(w *layerWriter) error { return r.fillPackages(ctx, w, debs) }); err != nil {
		return nil, err
	}
	if len(items) > 0 {
		if err := add(fillItems(items)); err != nil {
			return nil, err
		}
	}
	return assemble(layers, r.config, runtime.GOARCH)
}

func fillItems(items []item) func(*layerWriter) error {
	return func(w *layerWriter) error {
		for _, i := range items {
			if err := w.addItem(i); err != nil {
				return fmt.Errorf("%s: %w", i.name, err)
			}
		}
		return nil
	}
}

func (r recipe) fillPackages(ctx context.Context, w *layerWriter, debs []string) error {
	return eachFile(ctx, debs, func(h header, content io.Reader) error {
		if needless(h.Name) || r.keep != nil && !r.keep(h.Name) {
			return nil
		}
		return w.add(h.Header, content)
	})
}

// assemble puts an image together.
func assemble(layers []v1.Layer, config v1.Config, arch string) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture, cf.Config, cf.Created = "linux", arch, config, v1.Time{Time: epoch}
	return mutate.ConfigFile(img, cf)
}
