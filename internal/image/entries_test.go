package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func notInUse() (bool, error) { return false, nil }

func TestRemoveKeepsWhatIsUsed(t *testing.T) {
	s := openStore(t)
	ref := "oci:" + writeLayout(t, map[string]v1.Image{"x": newImage(t, "amd64", map[string]string{"f": "1"})})
	img, err := s.Ensure(t.Context(), ref, EnsureOptions{Platform: "linux/amd64"})
	if err != nil {
		t.Fatal(err)
	}
	list, err := s.List()
	if err != nil || len(list) != 1 || list[0].Digest != img.Digest || list[0].Err != nil || list[0].Reference != ref || list[0].Created.IsZero() {
		t.Fatalf("%+v, %v", list, err)
	}
	asked := func() (bool, error) { t.Error("it is held, and was asked for"); return false, nil }
	if removed, err := s.Remove(img.Digest, asked); removed || err != nil {
		t.Errorf("held: %v, %v", removed, err)
	}
	img.Release()
	img.Release()
	failure := errors.New("who knows")
	for _, inUse := range []func() (bool, error){
		func() (bool, error) { return true, nil },
		func() (bool, error) { return false, failure },
	} {
		if removed, err := s.Remove(img.Digest, inUse); removed || (err != nil && !errors.Is(err, failure)) {
			t.Errorf("used: %v, %v", removed, err)
		}
	}
	if _, err := os.Stat(img.Disk); err != nil {
		t.Error(err)
	}
	if removed, err := s.Remove(img.Digest, notInUse); !removed || err != nil {
		t.Errorf("not used: %v, %v", removed, err)
	}
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("after its removal: %+v, %v", list, err)
	}
	checkClean(t, s, 0)
	img, err = s.Ensure(t.Context(), ref, EnsureOptions{Platform: "linux/amd64"})
	if err != nil || img.Cached {
		t.Errorf("once more: %+v, %v", img, err)
	}
	img.Release()
}

func TestListShowsWhatIsBroken(t *testing.T) {
	s := openStore(t)
	broken := digestOf([]byte("x"))
	for _, dir := range []string{s.entry(broken), s.join("disks", "notes")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(s.entry(broken), recordName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := s.List()
	if err != nil || len(list) != 1 || list[0].Digest != broken || list[0].Err == nil {
		t.Fatalf("%+v, %v", list, err)
	}
	if removed, err := s.Remove(broken, notInUse); !removed || err != nil {
		t.Errorf("%v, %v", removed, err)
	}
	if _, err := s.Remove("../x", notInUse); err == nil {
		t.Error("a digest that is none is no error")
	}
}

// Whoever has an image has its disk, whatever is removed at the same time.
func TestEnsureIsSafeAgainstRemove(t *testing.T) {
	s := openStore(t)
	ref := "oci:" + writeLayout(t, map[string]v1.Image{"x": newImage(t, "amd64", map[string]string{"f": "1"})})
	ctx, stop := context.WithTimeout(t.Context(), 3*time.Second)
	defer stop()
	var users, removers sync.WaitGroup
	over := make(chan struct{})
	var ensured, removals int
	removers.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
			}
			list, err := s.List()
			if err != nil {
				t.Error(err)
			}
			for _, e := range list {
				removed, err := s.Remove(e.Digest, notInUse)
				if err != nil {
					t.Error(err)
				}
				if removed {
					removals++
				}
			}
		}
	})
	var mu sync.Mutex
	for range 3 {
		users.Go(func() {
			for ctx.Err() == nil {
				img, err := s.Ensure(t.Context(), ref, EnsureOptions{Platform: "linux/amd64"})
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := os.Stat(img.Disk); err != nil {
					t.Error(err)
				}
				img.Release()
				mu.Lock()
				ensured++
				mu.Unlock()
			}
		})
	}
	users.Wait()
	close(over)
	removers.Wait()
	if ensured == 0 || removals == 0 {
		t.Errorf("ensured %d times, removed %d times", ensured, removals)
	}
}
