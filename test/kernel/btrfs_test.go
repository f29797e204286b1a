//go:build kernel

package kernel

import (
	"path/filepath"
	"strings"
	"testing"
)

// A container that create makes on btrfs keeps its blocks. One that was copied there does not, which is told, and mended as the
// documentation says.
func TestContainerOnBtrfs(t *testing.T) {
	dir := t.TempDir()
	image, folder := filepath.Join(dir, "disk.img"), filepath.Join(dir, "disk")
	must(t, "fallocate", "--length", "512MiB", image)
	loop := must(t, "losetup", "--find", "--show", image)
	must(t, "mkfs.btrfs", "--quiet", loop)
	must(t, "mkdir", folder)
	must(t, "mount", loop, folder)
	t.Cleanup(func() {
		must(t, "umount", folder)
		must(t, "losetup", "--detach", loop)
	})
	s := newSite(t, below(folder))
	s.create()
	s.serve()
	s.awaitStatus("a look at the room", func(status) bool { return s.condition("space").Status == "ok" })
	s.succeed("lock", "--yes")

	must(t, "cp", s.container, s.container+".new")
	must(t, "mv", s.container+".new", s.container)
	s.succeed("unlock")
	s.awaitStatus("a warning", func(status) bool { return s.condition("space").Reason == "copied_on_write" })
	if space := s.condition("space"); space.Status != "degraded" || !strings.HasPrefix(space.Next, "lsattr "+s.container) {
		t.Errorf("%+v", space)
	}
	s.succeed("lock", "--yes")

	must(t, "touch", s.container+".new")
	must(t, "chattr", "+C", s.container+".new")
	must(t, "cp", "--reflink=never", "--sparse=never", "--preserve=mode,ownership", s.container, s.container+".new")
	must(t, "mv", s.container+".new", s.container)
	s.succeed("unlock")
	s.awaitStatus("no warning", func(status) bool { return s.condition("space").Status == "ok" })
	s.succeed("lock", "--yes")
}
