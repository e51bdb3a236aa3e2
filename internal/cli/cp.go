package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fcvm/fcvm/internal/agentapi"
	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/term"
	"github.com/fcvm/fcvm/internal/treecopy"
	"github.com/fcvm/fcvm/internal/vm"
)

type cpOptions struct {
	from, to string
	archive  bool
	follow   bool
}

func newCpCommand(a *app, run func(context.Context, *app, *cpOptions) error) *cobra.Command {
	o := new(cpOptions)
	cmd := &cobra.Command{
		Use:     "cp [flags] VM:PATH DIR|FILE|-\n  fcvm cp [flags] DIR|FILE|- VM:PATH",
		Short:   "Copy files between a VM's container and this host",
		GroupID: groupVMs,
		Long: `Copy a file or a directory out of the container of a VM, or into it. Paths in
the container begin at its root. What is copied goes into the destination if
that is a directory, and else becomes the destination; DIR/. means what is in a
directory, without the directory. With - a tar archive is written to stdout,
or read from stdin, plain or compressed with gzip, bzip2, xz or zstd, and
unpacked into a directory.

Links are copied as links. Owners are not kept, without -a: a copy is yours on
this host, and root's in the container.`,
		Example: `  fcvm cp web:/etc/nginx/nginx.conf .
  fcvm cp site/. web:/var/www/html
  fcvm cp -a db:/var/lib/data backup
  fcvm cp web:/var/log - | tar t
  tar c src | fcvm cp - build:/tmp`,
		Args:              twoPaths,
		ValidArgsFunction: completePaths(a),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			o.from, o.to = args[0], args[1]
			return run(ctx, a, o)
		}),
	}
	f := cmd.Flags()
	f.BoolVarP(&o.archive, "archive", "a", false, "keep owners, and what lets a program act as its owner")
	f.BoolVarP(&o.follow, "follow-link", "L", false, "copy what a link leads to that is named as the source")
	return cmd
}

func twoPaths(cmd *cobra.Command, args []string) error {
	if len(args) == 2 {
		return nil
	}
	return &usageError{command: cmd.CommandPath(), err: fmt.Errorf("it takes a source and a destination, not %d arguments", len(args))}
}

// completePaths completes names of VMs; the shell completes files of the host.
func completePaths(a *app) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 1 || strings.ContainsAny(typed, "/:.") {
			return nil, cobra.ShellCompDirectiveDefault
		}
		names := vmNames(a, nil, typed, liveVM)
		for i, n := range names {
			name, text, described := strings.Cut(n, "\t")
			if names[i] = name + ":"; described {
				names[i] += "\t" + text
			}
		}
		if len(names) == 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return names, cobra.ShellCompDirectiveNoSpace
	}
}

// splitPath tells VM:PATH from a path of this host. One that begins with . or
// has a / before the colon is always of this host.
func splitPath(arg string) (ref, path string) {
	ref, path, ok := strings.Cut(arg, ":")
	if !ok || ref == "" || arg[0] == '.' || strings.Contains(ref, "/") {
		return "", arg
	}
	return ref, path
}

func runCp(ctx context.Context, a *app, o *cpOptions) error {
	fromVM, from := splitPath(o.from)
	toVM, to := splitPath(o.to)
	switch {
	case from == "" || to == "":
		return fmt.Errorf("%w: a path is empty: %q to %q", vm.ErrInvalid, o.from, o.to)
	case fromVM != "" && toVM != "":
		return fmt.Errorf("%w: it copies between a VM and this host: from one VM to another in two steps, or with - and a pipe", vm.ErrInvalid)
	case fromVM != "":
		return a.copyOut(ctx, fromVM, from, to, o)
	case toVM != "":
		return a.copyIn(ctx, from, toVM, to, o)
	}
	return fmt.Errorf("%w: neither %q nor %q is in a VM: write VM:PATH", vm.ErrInvalid, o.from, o.to)
}

func (a *app) copyOut(ctx context.Context, ref, from, to string, o *cpOptions) error {
	if _, tty := term.Of(a.sys.Stdout); tty && to == "-" {
		return fmt.Errorf("%w: an archive is not for a terminal: redirect it", vm.ErrInvalid)
	}
	client, err := a.agentOf(ref)
	if err != nil {
		return err
	}
	defer client.Close()
	stream, err := client.CopyOut(ctx, agentapi.CopyRequest{Path: from, Follow: o.follow, Sparse: to != "-"})
	if err != nil {
		return fmt.Errorf("VM %s: %w", ref, err)
	}
	defer func() { _ = stream.Close() }()
	if to == "-" {
		if _, err := io.Copy(a.sys.Stdout, stream); err != nil {
			return fmt.Errorf("copy from the container: %w", err)
		}
		return nil
	}
	return a.unpack(stream, from, to, o)
}

// unpack puts what has come for from at to. The container chooses what is in
// it, but not what it is called.
func (a *app) unpack(stream io.Reader, from, to string, o *cpOptions) error {
	err := treecopy.Unpack(treecopy.Local{}, stream, to, treecopy.UnpackOptions{Archive: o.archive, Name: treecopy.Name(from), Skipped: a.skipped})
	if err != nil {
		return fmt.Errorf("copy %s to %s: %w", o.from, to, err)
	}
	return nil
}

func (a *app) copyIn(ctx context.Context, from, ref, to string, o *cpOptions) error {
	if _, tty := term.Of(a.sys.Stdin); tty && from == "-" {
		return fmt.Errorf("%w: an archive does not come from a terminal: redirect stdin", vm.ErrInvalid)
	}
	var src *treecopy.Source
	if from != "-" {
		var err error
		if src, err = treecopy.Open(treecopy.Local{}, from, treecopy.PackOptions{Follow: o.follow, Sparse: true}); err != nil {
			return fmt.Errorf("copy %s: %w", from, err)
		}
		defer func() { _ = src.Close() }()
	}
	client, err := a.agentOf(ref)
	if err != nil {
		return err
	}
	defer client.Close()
	stream := image.Decompress(a.sys.Stdin)
	if src != nil {
		r, w := io.Pipe()
		defer func() { _ = r.Close() }() // ends the packing, whoever stops first
		go func() { _ = w.CloseWithError(src.Pack(w)) }()
		stream = r
	}
	skipped, err := client.CopyIn(ctx, agentapi.CopyRequest{Path: to, Archive: o.archive, Extract: src == nil}, stream)
	if errors.Is(err, io.ErrClosedPipe) {
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("copy %s to %s: %w", from, o.to, err)
	}
	for _, s := range skipped {
		_, _ = fmt.Fprintln(a.sys.Stderr, "fcvm: left out "+printable(s))
	}
	return nil
}

// skipped tells what was not copied.
func (a *app) skipped(name, why string) {
	_, _ = fmt.Fprintf(a.sys.Stderr, "fcvm: left out %s: %s\n", printable(name), printable(why))
}
