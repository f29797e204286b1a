package health

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// writeProbeName is the file that the write probe makes and removes.
const writeProbeName = "probe-write"

// writeProbeBytes is one block of the filesystem.
const writeProbeBytes = 4096

// WriteProbe creates, writes, syncs, reads back and unlinks a small file. It is the one sure sign
// of a filesystem that takes writes: after an I/O error ext4 still shows "rw" in mountinfo, with
// "emergency_ro" beside it only since Linux 6.15 (commit 6b76715d5e41).
type WriteProbe struct {
	Dir    string // a directory of the volume that belongs to root, <volume>/.luksmediad
	Device Device // of the volume; the probe never writes anywhere else
	// Flags says, with a reason, why the kernel's mount table shows the filesystem as one that takes no writes; nil if it is not asked.
	Flags func() error
	// ErrorCount is the file in which the kernel counts the filesystem's errors, /sys/fs/ext4/dm-N/errors_count; empty where there is none.
	ErrorCount string
}

// Name returns Write.
func (p *WriteProbe) Name() Code { return Write }

// Run does the write. Its errors have the reasons of the table of conditions.
func (p *WriteProbe) Run(context.Context) (string, error) {
	if p.Flags != nil {
		if err := p.Flags(); err != nil {
			return "", err
		}
	}
	dir, err := openDirectory(p.Dir, p.Device)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	contents := make([]byte, writeProbeBytes)
	rand.Read(contents) // never fails, crypto/rand
	err = dir.create(writeProbeName, contents)
	if err == nil {
		err = readBack(dir, contents)
	}
	if err = errors.Join(err, dir.remove(writeProbeName)); err != nil {
		return "", fmt.Errorf("cannot rely on the volume: %w", outOfInodes(dir, err))
	}
	if err := p.countErrors(); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d bytes written, synced and read back", writeProbeBytes), nil
}

// outOfInodes tells want of inodes from want of space, for which there is but one error number.
func outOfInodes(dir *directory, err error) error {
	var stat unix.Statfs_t
	if ReasonOf(err) == ReasonNoSpace && unix.Fstatfs(int(dir.file.Fd()), &stat) == nil && stat.Files > 0 && stat.Ffree == 0 {
		return &Failure{ReasonNoInodes, fmt.Errorf("no inode is left: %w", err)}
	}
	return err
}

// countErrors reads the number of errors since the last check of the filesystem; it is kept on the disk.
func (p *WriteProbe) countErrors() error {
	if p.ErrorCount == "" {
		return nil
	}
	content, err := os.ReadFile(p.ErrorCount)
	if err != nil {
		return fmt.Errorf("cannot read the errors of the filesystem: %w", err)
	}
	if count := strings.TrimSpace(string(content)); count != "0" {
		return &Failure{ReasonFilesystemErrors, fmt.Errorf("the filesystem has met %s errors since it was last checked", count)}
	}
	return nil
}

// readBack compares the file with what was written, from the disk and not from the page cache.
func readBack(dir *directory, want []byte) error {
	file, err := dir.open(writeProbeName, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := dropCache(file, 0, 0); err != nil {
		return err
	}
	have := make([]byte, len(want))
	if _, err := file.ReadAt(have, 0); err != nil {
		return fmt.Errorf("cannot read back %s: %w", file.Name(), err)
	}
	if !bytes.Equal(have, want) {
		return &Failure{ReasonIO, fmt.Errorf("cannot trust %s: it reads back other bytes than were written", file.Name())}
	}
	return nil
}

// dropCache removes clean pages of a range from the page cache; length 0 means to the end.
// posix_fadvise(2): dirty pages stay, so the caller syncs first.
func dropCache(file *os.File, offset, length int64) error {
	if err := unix.Fadvise(int(file.Fd()), offset, length, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("cannot drop the page cache of %s: %w", file.Name(), err)
	}
	return nil
}
