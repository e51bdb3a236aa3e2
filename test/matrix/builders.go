package matrix

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// run runs a program, and returns what it wrote.
func run(tb testing.TB, args ...string) string {
	tb.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		tb.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

// Unpack has umoci unpack the image "x" of a layout, and returns its root.
func Unpack(tb testing.TB, layout string) string {
	tb.Helper()
	bundle := filepath.Join(tb.TempDir(), "bundle")
	run(tb, "umoci", "unpack", "--image", layout+":x", bundle)
	return filepath.Join(bundle, "rootfs")
}

// Archive has skopeo make an archive, "docker-archive" or "oci-archive", of the
// image "x" of a layout, and returns fcvm's reference to it.
func Archive(tb testing.TB, layout, kind string) string {
	tb.Helper()
	ref := kind + ":" + filepath.Join(tb.TempDir(), "image.tar")
	name := map[string]string{"docker-archive": ":x:1", "oci-archive": ":x"}[kind]
	run(tb, "skopeo", "copy", "--quiet", "--insecure-policy", "oci:"+layout+":x", ref+name)
	return ref
}

// ByUmoci has umoci make the image "x" of a layout: of a tree, a whiteout and
// an opaque directory.
func ByUmoci(tb testing.TB, layout string) {
	tb.Helper()
	dir := tb.TempDir()
	run(tb, "umoci", "init", "--layout", layout)
	run(tb, "umoci", "new", "--image", layout+":x")
	run(tb, "sh", "-c", "cd '"+dir+"' && mkdir -p a/b c && echo 1 >a/b/f && echo 2 >a/g && ln a/g a/h && ln -s ../a c/l && mkfifo c/p && mknod c/n c 1 3 && chown 42:43 a/g")
	run(tb, "umoci", "insert", "--image", layout+":x", dir, "/")
	run(tb, "umoci", "insert", "--image", layout+":x", "--whiteout", "/a/b/f")
	run(tb, "umoci", "insert", "--image", layout+":x", "--opaque", dir+"/c", "/a")
}

// ByBuildah has buildah make the image "x" of a layout, of two layers the
// second of which changes and removes what the first one has. It returns the
// image's root as buildah has it.
func ByBuildah(tb testing.TB, layout string) string {
	tb.Helper()
	storage := tb.TempDir()
	buildah := func(args ...string) string {
		all := append([]string{"buildah", "--storage-driver", "vfs", "--root", storage + "/root", "--runroot", storage + "/run"}, args...)
		return strings.TrimSpace(run(tb, all...))
	}
	first := buildah("from", "scratch")
	at := buildah("mount", first)
	run(tb, "sh", "-c", "cd '"+at+"' && mkdir -p a/b c d && echo 1 >a/b/f && echo 2 >a/g && ln a/g a/h && echo 3 >c/x && mknod d/n b 8 1 && chown 99999:1 c && chmod 4711 a/g")
	buildah("commit", "--quiet", first, "base")
	buildah("umount", first)
	second := buildah("from", "localhost/base")
	at = buildah("mount", second)
	run(tb, "sh", "-c", "cd '"+at+"' && rm a/b/f && rm -r c && mkdir c && echo 4 >c/y && echo 5 >>a/g && mv d e && ln a/h e/hard")
	buildah("commit", "--quiet", second, "oci:"+layout+":x")
	buildah("commit", "--quiet", second, "changed")
	buildah("umount", second)
	third := buildah("from", "localhost/changed")
	tb.Cleanup(func() { buildah("umount", third) })
	return buildah("mount", third)
}
