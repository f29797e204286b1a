package volume

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"luksmediad/pkg/unlock/luks2"
)

// headerCopyFile is a copy of a header with its keyslots.
type headerCopyFile struct {
	*os.File
	header *luks2.Header
}

// openHeaderCopy wants the copy to be whole.
func openHeaderCopy(path string) (*headerCopyFile, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	header, err := inspectWhole(file)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot read %s: %w", path, err), file.Close())
	}
	return &headerCopyFile{file, header}, nil
}

func inspectWhole(file *os.File) (*luks2.Header, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	header, err := luks2.Inspect(file, info.Size())
	if err != nil {
		return nil, err
	}
	return header, CheckDamage(header)
}

// checkFresh wants a copy that was just made to be of the container, and no worse than the one that it is to replace: there is no older
// one.
func (v *Volume) checkFresh(path, uuid string) error {
	fresh, err := openHeaderCopy(path)
	if err != nil {
		return fmt.Errorf("cannot back up the header: %w", err)
	}
	defer fresh.Close()
	if fresh.header.UUID != uuid {
		return wrongf(luks2.ErrPinMismatch, "cannot back up the header: %s is of container %s", path, fresh.header.UUID)
	}
	if err := v.checkAreas(fresh, fresh.header); err != nil {
		return fmt.Errorf("cannot back up the header: %w", err)
	}
	return nil
}

// checkAreas compares the keyslots, as r has them, with the copy that is kept; it fails with [ErrKeyslotDamaged]. Without a copy nothing
// is wrong.
func (v *Volume) checkAreas(r io.ReaderAt, header *luks2.Header, except ...int) error {
	kept, err := openHeaderCopy(v.backupPath(header.UUID))
	if err != nil {
		return nil // which is said by CheckHeader
	}
	defer kept.Close()
	return v.compareAreas(r, header, kept, except...)
}

// compareAreas: what has the same salt has the same bytes, since cryptsetup makes another salt whenever it fills a keyslot
// (luks2_keyslot_update_json in lib/luks2/luks2_keyslot_luks2.c). Which of two that differ is damaged, only the key tells.
func (v *Volume) compareAreas(r io.ReaderAt, header *luks2.Header, kept *headerCopyFile, except ...int) error {
	for _, number := range slices.Sorted(maps.Keys(header.Metadata.Keyslots)) {
		keyslot, copied := header.Metadata.Keyslots[number], kept.header.Metadata.Keyslots[number]
		if slices.Contains(except, number) || len(keyslot.KDF.Salt) == 0 || !bytes.Equal(keyslot.KDF.Salt, copied.KDF.Salt) {
			continue
		}
		same, err := sameArea(r, keyslot.Area, kept, copied.Area)
		if err != nil {
			return fmt.Errorf("cannot compare keyslot %d of %s with %s: %w", number, v.config.Volume.Container, kept.Name(), err)
		}
		if !same {
			return wrongf(ErrKeyslotDamaged, "keyslot %d of %s is not the same in the copy in %s", number, v.config.Volume.Container, kept.Name())
		}
	}
	return nil
}

func sameArea(r io.ReaderAt, area luks2.Area, copied io.ReaderAt, copiedArea luks2.Area) (bool, error) {
	sum, err := areaSum(r, area)
	if err != nil {
		return false, err
	}
	copiedSum, err := areaSum(copied, copiedArea)
	return bytes.Equal(sum, copiedSum), err
}

func areaSum(r io.ReaderAt, area luks2.Area) ([]byte, error) {
	sum := sha256.New()
	_, err := io.Copy(sum, io.NewSectionReader(r, area.Offset, area.Size))
	return sum.Sum(nil), err
}

// checkKeyslots refuses to change the keys while a keyslot is damaged that stays. It takes the header as it is now: somebody may have
// filled a keyslot by other means since.
func (k *keyChanging) checkKeyslots(going ...int) error {
	header, err := k.read()
	if err != nil {
		return err
	}
	for _, half := range k.halfRemoved() {
		going = append(going, half.Keyslot)
	}
	if err := k.checkAreas(k.container, header, going...); err != nil {
		return fmt.Errorf("cannot change the keys: %w", err)
	}
	return nil
}
