package mount

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"sync"

	"golang.org/x/sys/unix"
)

var (
	labelPattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9_.-]*$`) })
	uuidPattern  = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`) })
)

// MakeOptions says what filesystem is to be made.
type MakeOptions struct {
	Kind Kind
	// Label: letters, digits and _.- only; at most 16 bytes for ext4, 12 for xfs. Empty: none.
	Label string
	// UUID in its usual form, lower case; empty: a random one. A filesystem of this very UUID on the device is a half-made
	// one of the caller's, who chose and recorded the UUID before: it is made anew.
	UUID string
}

// Make makes a filesystem on device and returns its UUID, read back from the device. No block is discarded and nothing is left
// for the kernel to initialise later: both would punch holes into the file below, or need blocks that it does not have.
//
// Errors: ErrForeign if the device carries anything known, ErrBusy if it is mounted or claimed, ErrInvalid, ErrUnverified, the
// Runner's.
func Make(ctx context.Context, runner Runner, device string, options MakeOptions) (uuid string, err error) {
	if err := options.check(); err != nil {
		return "", fmt.Errorf("cannot make a filesystem on %s: %w", device, err)
	}
	replace, err := checkMakeable(device, options.UUID)
	if err != nil {
		return "", fmt.Errorf("cannot make a filesystem on %s: %w", device, err)
	}
	name, args := options.command(device, replace)
	if _, err := runner.Run(ctx, nil, nil, name, args...); err != nil {
		return "", fmt.Errorf("cannot make a filesystem on %s: %w", device, err)
	}
	made, err := Identify(device)
	if err != nil {
		return "", err
	}
	if made.Kind != options.Kind || made.Label != options.Label || (options.UUID != "" && made.UUID != options.UUID) {
		return "", fmt.Errorf("cannot make a filesystem on %s: %w: found %+v", device, ErrUnverified, made)
	}
	return made.UUID, nil
}

func (o MakeOptions) check() error {
	if err := o.Kind.check(); err != nil {
		return err
	}
	limit := 16 // s_volume_name
	if o.Kind == XFS {
		limit = 12 // sb_fname
	}
	if len(o.Label) > limit || !labelPattern().MatchString(o.Label) {
		return fmt.Errorf("%w: label %q", ErrInvalid, o.Label)
	}
	if o.UUID != "" && !uuidPattern().MatchString(o.UUID) {
		return fmt.Errorf("%w: UUID %q", ErrInvalid, o.UUID)
	}
	return nil
}

// checkMakeable claims the device for a moment, which fails while it is mounted or part of a mapping, and looks at its content.
func checkMakeable(device, replaceable string) (replace bool, err error) {
	claimed, err := openDevice(device, os.O_RDWR|unix.O_EXCL)
	if err != nil {
		return false, err
	}
	defer claimed.Close()
	found, err := IdentifyReader(claimed)
	if err != nil {
		return false, cause(err)
	}
	if found.Blank() {
		return false, nil
	}
	if replaceable == "" || found.UUID != replaceable {
		return false, fmt.Errorf("%w: %s %s", ErrForeign, found.Kind, found.UUID)
	}
	return true, nil
}

// command: ext4's 4096-byte blocks whatever the size, because the sectors of the volume are no smaller. mkfs.xfs without -f looks
// for foreign signatures once more; mkfs.ext4 without a terminal overwrites whatever it finds.
func (o MakeOptions) command(device string, replace bool) (name string, args []string) {
	switch o.Kind {
	case Ext4:
		name, args = "mkfs.ext4", []string{
			"-q", "-b", "4096", "-e", "remount-ro", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0",
		}
		if o.UUID != "" {
			args = append(args, "-U", o.UUID)
		}
	case XFS:
		name, args = "mkfs.xfs", []string{"-q", "-K"}
		if o.UUID != "" {
			args = append(args, "-m", "uuid="+o.UUID)
		}
		if replace {
			args = append(args, "-f")
		}
	}
	if o.Label != "" {
		args = append(args, "-L", o.Label)
	}
	return name, append(args, device)
}
