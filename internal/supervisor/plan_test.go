package supervisor

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fcvm/fcvm/internal/image"
	"github.com/fcvm/fcvm/internal/vm"
)

func TestCommand(t *testing.T) {
	img := image.Config{Entrypoint: []string{"/entry"}, Cmd: []string{"default"}}
	tests := []struct {
		name string
		spec vm.ContainerSpec
		img  image.Config
		want []string
	}{
		{"the image's own", vm.ContainerSpec{}, img, []string{"/entry", "default"}},
		{"a command takes the place of the image's", vm.ContainerSpec{Command: []string{"ls", "-l"}}, img, []string{"/entry", "ls", "-l"}},
		{"an entrypoint drops the image's command", vm.ContainerSpec{Entrypoint: []string{"sh"}}, img, []string{"sh"}},
		{"entrypoint and command", vm.ContainerSpec{Entrypoint: []string{"sh"}, Command: []string{"-c", "x"}}, img, []string{"sh", "-c", "x"}},
		{"an empty entrypoint", vm.ContainerSpec{Entrypoint: []string{}, Command: []string{"ls"}}, img, []string{"ls"}},
		{"nothing anywhere", vm.ContainerSpec{}, image.Config{}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, command(&tt.spec, &tt.img)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestMergeEnv(t *testing.T) {
	got := mergeEnv([]string{"PATH=/bin", "A=1"}, []string{"A=2", "B=x=y", "A=3"})
	if diff := cmp.Diff([]string{"PATH=/bin", "A=3", "B=x=y"}, got); diff != "" {
		t.Error(diff)
	}
}
