package cli

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

type versionOptions struct{ format string }

func newVersionCommand(a *app, run func(context.Context, *app, *versionOptions) error) *cobra.Command {
	o := new(versionOptions)
	cmd := &cobra.Command{
		Use:               "version [flags]",
		Short:             "Print the version of fcvm",
		GroupID:           groupOther,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              interruptible(func(ctx context.Context, _ []string) error { return run(ctx, a, o) }),
	}
	addFormat(cmd, &o.format, "Version", "Commit", "Date", "Modified", "Go", "Platform")
	return cmd
}

// buildInfo says what this program was made from. Go's linker has written it
// down, so a build needs no flags for it.
type buildInfo struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Date     string `json:"date,omitempty"` // of the commit, RFC 3339
	Modified bool   `json:"modified"`       // the tree differed from the commit
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func readBuildInfo() buildInfo {
	b := buildInfo{Version: "unknown", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if info.Main.Version != "" {
		b.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.time":
			b.Date = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

func runVersion(_ context.Context, a *app, o *versionOptions) error {
	f, err := parseFormat(o.format)
	if err != nil {
		return err
	}
	b := readBuildInfo()
	switch {
	case f.json:
		return writeJSON(a.sys.Stdout, b)
	case f.tmpl != nil:
		return f.execute(a.sys.Stdout, b)
	}
	line := "fcvm " + b.Version
	if b.Commit != "" {
		line += fmt.Sprintf(" (commit %.12s)", b.Commit)
	}
	_, err = fmt.Fprintf(a.sys.Stdout, "%s, %s, %s\n", line, b.Go, b.Platform)
	return err
}
