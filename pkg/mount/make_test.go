package mount

import (
	"context"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
)

const someUUID = "3f0c2a4e-9d5b-4f6e-8a17-0c2d4e6f8a1b"

func TestMake(t *testing.T) {
	for _, options := range []MakeOptions{
		{Kind: Ext4},
		{Kind: Ext4, Label: "luksmediad", UUID: someUUID},
		{Kind: XFS},
		{Kind: XFS, Label: "luksmediad", UUID: someUUID},
	} {
		t.Run(string(options.Kind)+" "+options.Label, func(t *testing.T) {
			image := imageFile(t, 320<<20)
			uuid, err := Make(t.Context(), programs{}, image, options)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Identify(image)
			if want := (Identity{Kind: options.Kind, UUID: uuid, Label: options.Label}); err != nil || got != want {
				t.Errorf("found %+v (%v), want %+v", got, err, want)
			}
			if options.UUID != "" && uuid != options.UUID {
				t.Errorf("UUID %s, want %s", uuid, options.UUID)
			}
			if !uuidPattern().MatchString(uuid) {
				t.Errorf("UUID %q", uuid)
			}
		})
	}
}

// What the kernel would do later is done at once, and the superblock never says panic (fault 60).
func TestMakeExt4Superblock(t *testing.T) {
	image := imageFile(t, 320<<20)
	if _, err := Make(t.Context(), programs{}, image, MakeOptions{Kind: Ext4}); err != nil {
		t.Fatal(err)
	}
	dump := run(t, "dumpe2fs", image)
	for _, line := range []string{`Errors behavior: +Remount read-only`, `Block size: +4096`} {
		if !regexp.MustCompile(line).MatchString(dump) {
			t.Errorf("dumpe2fs does not show %q", line)
		}
	}
	groups := len(regexp.MustCompile(`(?m)^Group \d+:`).FindAllString(dump, -1))
	zeroed := strings.Count(dump, "ITABLE_ZEROED")
	if groups == 0 || groups != zeroed {
		t.Errorf("%d of %d inode tables are initialised", zeroed, groups)
	}
}

// mkfs must not punch holes into a file that was allocated.
func TestMakeKeepsBlocks(t *testing.T) {
	for _, kind := range []Kind{Ext4, XFS} {
		image := imageFile(t, 0)
		file := openFile(t, image, os.O_RDWR)
		if err := Allocate(t.Context(), file, 320<<20, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := Make(t.Context(), programs{}, image, MakeOptions{Kind: kind}); err != nil {
			t.Fatal(err)
		}
		if allocated, size, err := Allocation(file); err != nil || allocated < size {
			t.Errorf("%s: %d of %d bytes are allocated (%v)", kind, allocated, size, err)
		}
	}
}

func TestMakeRefusesForeignContent(t *testing.T) {
	for name, put := range map[string]func(image string){
		"xfs":  func(image string) { run(t, "mkfs.xfs", "-q", "-K", image) },
		"ext4": func(image string) { run(t, "mkfs.ext4", "-q", image) },
		"LUKS": func(image string) { formatLUKS(t, image, "luks2") },
		"swap": func(image string) { run(t, "mkswap", "-q", image) },
	} {
		t.Run(name, func(t *testing.T) {
			image := imageFile(t, 320<<20)
			put(image)
			before := run(t, "stat", "--format=%y %b", image)
			for _, kind := range []Kind{Ext4, XFS} {
				_, err := Make(t.Context(), programs{}, image, MakeOptions{Kind: kind, UUID: someUUID})
				if !errors.Is(err, ErrForeign) {
					t.Errorf("%s: %v, want ErrForeign", kind, err)
				}
			}
			if after := run(t, "stat", "--format=%y %b", image); after != before {
				t.Errorf("the image was written to: %s, before %s", after, before)
			}
		})
	}
}

// fault 4: a creation that was cut off makes its own filesystem again, and only that.
func TestMakeReplacesItsOwn(t *testing.T) {
	for _, kind := range []Kind{Ext4, XFS} {
		image := imageFile(t, 320<<20)
		options := MakeOptions{Kind: kind, UUID: someUUID, Label: "one"}
		for range 2 {
			if _, err := Make(t.Context(), programs{}, image, options); err != nil {
				t.Fatalf("%s: %v", kind, err)
			}
			options.Label = "two"
		}
		if got, err := Identify(image); err != nil || got.Label != "two" {
			t.Errorf("%s: %+v, %v", kind, got, err)
		}
		options.UUID = strings.Replace(someUUID, "3", "4", 1)
		if _, err := Make(t.Context(), programs{}, image, options); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %v, want ErrForeign", kind, err)
		}
	}
}

func TestMakeOptions(t *testing.T) {
	for _, options := range []MakeOptions{
		{},
		{Kind: "btrfs"},
		{Kind: Ext4, Label: "seventeen-bytes-x"},
		{Kind: XFS, Label: "thirteen-byte"},
		{Kind: Ext4, Label: "-O ^x"},
		{Kind: Ext4, UUID: "random"},
		{Kind: Ext4, UUID: strings.ToUpper(someUUID)},
	} {
		if _, err := Make(t.Context(), programs{}, imageFile(t, 1<<20), options); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v, want ErrInvalid", options, err)
		}
	}
}

// An argument that looks like an option is a relative path.
func TestMakePath(t *testing.T) {
	if _, err := Make(t.Context(), programs{}, "-F", MakeOptions{Kind: Ext4}); !errors.Is(err, ErrInvalid) {
		t.Errorf("%v, want ErrInvalid", err)
	}
}

func TestMakeFailure(t *testing.T) {
	image := imageFile(t, 64<<10) // too small for 4096-byte blocks and a journal
	_, err := Make(t.Context(), programs{}, image, MakeOptions{Kind: XFS})
	if code, exited := exitCode(err); !exited || code == 0 {
		t.Errorf("%v, want the exit code of mkfs.xfs", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Make(ctx, programs{}, imageFile(t, 64<<20), MakeOptions{Kind: Ext4}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
}
