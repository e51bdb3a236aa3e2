package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/progress"
	"github.com/fcvm/fcvm/internal/vm"
)

func newImageCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "image",
		Short:   "Look after the images on this host",
		GroupID: groupHost,
		Long: `Look after the images on this host. An image is fetched once, with all its layers,
and made into one read-only disk, which all VMs share.

IMAGE is a name as docker takes it, NAME@DIGEST, or where an image lies:
oci-archive:FILE, docker-archive:FILE, oci:DIRECTORY, containers-storage:NAME (of
Podman) or docker-daemon:NAME. What is here already can also be called by its id.`,
		Example: `  fcvm image pull debian:12
  fcvm image ls
  fcvm image prune`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newImagePullCommand(a, runImagePull),
		newImageLsCommand(a, runImageLs),
		newImageInspectCommand(a, runImageInspect),
		newImageHistoryCommand(a, runImageHistory),
		newImageTagCommand(a, runImageTag),
		newImageRmCommand(a, runImageRm),
		newImagePruneCommand(a, runImagePrune),
		newImageImportCommand(a, runImageImport),
		newImageLoadCommand(a, runImageLoad),
		newImageSaveCommand(a, runImageSave),
		newImageBuildDiskCommand(a, runImageBuildDisk),
		newImageVerifyCommand(a, runImageVerify),
	)
	return cmd
}

// addAccess registers the flags that say how registries are spoken to.
func addAccess(cmd *cobra.Command, access *image.Access) {
	f := cmd.Flags()
	f.StringVar(&access.AuthFile, "authfile", "", "take credentials from `FILE` only (default: Docker's and Podman's)")
	f.StringVar(&access.CertDir, "cert-dir", "", "take the registry's certificates from `DIR` only: *.crt, *.cert with *.key (default: certs.d of Podman and Docker)")
	f.Var(optionalBool{&access.TLSVerify}, "tls-verify", "check the registry's certificate; false also allows plain HTTP (default: as in registries.conf)")
	f.Lookup("tls-verify").NoOptDefVal = "true"
}

// optionalBool is a flag that is nil unless it is given.
type optionalBool struct{ value **bool }

var _ pflag.Value = optionalBool{}

// Set, String and Type implement pflag.Value.
func (o optionalBool) Set(s string) error {
	b, err := strconv.ParseBool(s)
	if err != nil {
		return errors.New("it is true or false")
	}
	*o.value = &b
	return nil
}

func (o optionalBool) String() string {
	if o.value == nil || *o.value == nil {
		return ""
	}
	return strconv.FormatBool(**o.value)
}

func (o optionalBool) Type() string { return "bool" }

func addPlatform(cmd *cobra.Command, platform *string) {
	cmd.Flags().StringVar(platform, "platform", "", "take the image for `OS/ARCH` (default: this machine's)")
}

// maxSizeVariable limits the cache for all commands that fill it.
const maxSizeVariable = "FCVM_IMAGE_MAX_SIZE"

// addMaxSize registers --max-size, in MiB; 0: not given.
func addMaxSize(cmd *cobra.Command, mib *int) {
	cmd.Flags().Var(memory{mib}, "max-size", "let images take at most `SIZE` of the disk, as 20g: the least recently used go (default $"+maxSizeVariable+")")
}

// shrinkImages keeps the cache within its limit, if it has one. What had to go
// is said on stderr.
func (a *app) shrinkImages(ctx context.Context, mib int) error {
	if mib == 0 {
		text := a.sys.getenv(maxSizeVariable)
		if text == "" {
			return nil
		}
		var err error
		if mib, err = parseMemory(text); err != nil {
			return fmt.Errorf("%w: %s=%s: %w", vm.ErrInvalid, maxSizeVariable, text, err)
		}
	}
	inv, err := a.openInventory()
	if err != nil {
		return err
	}
	limit := int64(mib) << 20
	removed, left, err := inv.Shrink(ctx, limit)
	for _, i := range removed {
		_, _ = fmt.Fprintf(a.sys.Stderr, "fcvm: removed %s, to keep the images below %s\n", printable(i.String()), progress.FormatBytes(limit))
	}
	if err == nil && left > limit {
		_, _ = fmt.Fprintf(a.sys.Stderr, "fcvm: images take %s, more than %s: the rest is in use\n", progress.FormatBytes(left), progress.FormatBytes(limit))
	}
	return err
}

// completeImages offers the names of images that are here.
func completeImages(a *app) cobra.CompletionFunc {
	return func(_ *cobra.Command, given []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		l, err := a.layout()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		if _, err := os.Stat(l.Images()); err != nil { // a key press makes no directories
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		images, err := image.Open(l.Images())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		list, err := images.List()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []cobra.Completion
		for _, e := range list {
			for _, n := range e.Names {
				if !slices.Contains(given, n.Name) {
					out = append(out, cobra.CompletionWithDesc(n.Name, shortID(e.Digest)))
				}
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// eachImage runs f for each of the images, all of them even if some fail.
func (a *app) eachImage(ctx context.Context, refs []string, platform string, f func(*image.Store, string, image.Entry) error) error {
	images, err := a.openImages()
	if err != nil {
		return err
	}
	var failed []error
	for _, ref := range refs {
		if ctx.Err() != nil {
			return errors.Join(append(failed, context.Cause(ctx))...)
		}
		e, err := images.Find(ref, platform)
		if err == nil {
			err = f(images, ref, e)
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}
