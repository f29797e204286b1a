package mount

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func ext4Image(t *testing.T) string {
	t.Helper()
	image := imageFile(t, 64<<20)
	if _, err := Make(t.Context(), programs{}, image, MakeOptions{Kind: Ext4}); err != nil {
		t.Fatal(err)
	}
	return image
}

// debugfs makes damage of a known kind.
func debugfs(t *testing.T, image string, requests ...string) {
	t.Helper()
	for _, request := range requests {
		run(t, "debugfs", "-w", "-R", request, image)
	}
}

func TestCheckClean(t *testing.T) {
	if repaired, err := Check(t.Context(), programs{}, ext4Image(t), Ext4); err != nil || repaired {
		t.Errorf("repaired %v, %v", repaired, err)
	}
}

// fault 59: e2fsck -p corrects what loses nothing.
func TestCheckRepairs(t *testing.T) {
	image := ext4Image(t)
	debugfs(t, image, "set_super_value state 0", "set_super_value free_blocks_count 1")
	if repaired, err := Check(t.Context(), programs{}, image, Ext4); err != nil || !repaired {
		t.Errorf("repaired %v, %v", repaired, err)
	}
	if repaired, err := Check(t.Context(), programs{}, image, Ext4); err != nil || repaired {
		t.Errorf("second run: repaired %v, %v", repaired, err)
	}
}

// fault 59: what needs a person is left as it is.
func TestCheckDamaged(t *testing.T) {
	image := ext4Image(t)
	debugfs(t, image, "clri <2>", "set_super_value state 0")
	if repaired, err := Check(t.Context(), programs{}, image, Ext4); !errors.Is(err, ErrFilesystemDamaged) {
		t.Errorf("repaired %v, %v", repaired, err)
	}
	if said := run(t, "debugfs", "-R", "stat <2>", image); !strings.Contains(said, "Type: bad type") {
		t.Errorf("changed: %s", said)
	}
}

// fault 60: a superblock that is gone, and one that lies behind an intact magic.
func TestCheckDamagedSuperblock(t *testing.T) {
	wiped := ext4Image(t)
	overwrite(t, wiped, extOffset, make([]byte, 1024))
	torn := ext4Image(t)
	overwrite(t, torn, extOffset+0x100, []byte(strings.Repeat("\xff", 0x200)))
	for name, image := range map[string]string{"wiped": wiped, "torn": torn} {
		repaired, err := Check(t.Context(), programs{}, image, Ext4)
		if name == "torn" && err == nil && repaired {
			continue // e2fsck may find a backup good enough
		}
		if !errors.Is(err, ErrFilesystemDamaged) {
			t.Errorf("%s: repaired %v, %v", name, repaired, err)
		}
	}
}

func TestCheckForeign(t *testing.T) {
	image := imageFile(t, 320<<20)
	if _, err := Make(t.Context(), programs{}, image, MakeOptions{Kind: XFS}); err != nil {
		t.Fatal(err)
	}
	if _, err := Check(t.Context(), programs{}, image, XFS); err != nil {
		t.Errorf("xfs: %v", err)
	}
	if _, err := Check(t.Context(), programs{}, image, Ext4); !errors.Is(err, ErrForeign) {
		t.Errorf("xfs as ext4: %v, want ErrForeign", err)
	}
	if _, err := Check(t.Context(), programs{}, image, "vfat"); !errors.Is(err, ErrInvalid) {
		t.Errorf("vfat: %v, want ErrInvalid", err)
	}
}

// A check that was stopped says nothing about the filesystem.
func TestCheckCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	image := ext4Image(t)
	debugfs(t, image, "set_super_value state 0")
	_, err := Check(ctx, programs{}, image, Ext4)
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrFilesystemDamaged) {
		t.Errorf("%v, want context.Canceled", err)
	}
}

// fault 59: the codes that e2fsck gives only for a mounted root filesystem or a broken installation.
func TestJudgeE2fsck(t *testing.T) {
	failure := errors.New("exit status")
	for code, want := range map[int]struct {
		repaired bool
		class    error
	}{
		0:       {},
		1:       {repaired: true},
		2:       {repaired: true},
		3:       {repaired: true},
		4:       {class: ErrFilesystemDamaged},
		5:       {class: ErrFilesystemDamaged},
		8:       {class: ErrFilesystemDamaged},
		16:      {class: failure},
		32:      {class: failure},
		32 | 1:  {class: failure},
		128 | 8: {class: failure},
	} {
		repaired, err := judgeE2fsck(code, failure)
		if repaired != want.repaired || !errors.Is(err, want.class) {
			t.Errorf("code %d: repaired %v, %v", code, repaired, err)
		}
		if want.class == failure && errors.Is(err, ErrFilesystemDamaged) {
			t.Errorf("code %d is no damage: %v", code, err)
		}
	}
}
