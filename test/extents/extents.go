// Package extents reads containers for tests. Most of a container is allocated and was never written, which reads as zeros; that is
// passed over instead of being read.
package extents

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	pieceBytes = 1 << 20
	blockBytes = 4096
)

// walk hands over, in order, what may be something else than zeros, in pieces that begin on a block. The bytes are valid until see returns.
func walk(file *os.File, see func(at int64, piece []byte) error) error {
	buffer := make([]byte, pieceBytes)
	for end := int64(0); ; {
		begin, next, err := extent(file, end)
		if begin == next || err != nil {
			return err
		}
		end = next
		for at := begin - begin%blockBytes; at < end; at += pieceBytes {
			n, err := file.ReadAt(buffer[:min(pieceBytes, end-at)], at)
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			if err := see(at, buffer[:n]); err != nil {
				return err
			}
		}
	}
}

// extent is the next that was written; an empty one if there is none.
func extent(file *os.File, from int64) (begin, end int64, err error) {
	begin, err = file.Seek(from, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return from, from, nil
	case errors.Is(err, unix.EINVAL): // a block device, of which older kernels do not say it
		end, err = file.Seek(0, io.SeekEnd)
		return from, end, err
	case err != nil:
		return from, from, err
	}
	end, err = file.Seek(begin, unix.SEEK_HOLE)
	return begin, end, err
}

// Sum is a digest of a file's size and content.
func Sum(path string) (sum [sha256.Size]byte, err error) {
	file, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer file.Close()
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return sum, err
	}
	digest := sha256.New()
	digest.Write(binary.BigEndian.AppendUint64(nil, uint64(size)))
	zeros := make([]byte, blockBytes)
	err = walk(file, func(at int64, piece []byte) error {
		for begin := 0; begin < len(piece); begin += blockBytes {
			block := piece[begin:min(begin+blockBytes, len(piece))]
			if !bytes.Equal(block, zeros[:len(block)]) { // a page that was read counts as written
				digest.Write(binary.BigEndian.AppendUint64(nil, uint64(at)+uint64(begin)))
				digest.Write(block)
			}
		}
		return nil
	})
	return [sha256.Size]byte(digest.Sum(nil)), err
}

// Index is where a file or block device first has the needle, which has no zeros; -1 if nowhere.
func Index(path string, needle []byte) (int64, error) {
	file, err := os.Open(path)
	if err != nil {
		return -1, err
	}
	defer file.Close()
	var window []byte // the end of what came before, and a piece
	found, next := int64(-1), int64(-1)
	err = walk(file, func(at int64, piece []byte) error {
		if at != next {
			window = window[:0]
		}
		kept := min(len(window), len(needle)-1)
		window = append(append(window[:0], window[len(window)-kept:]...), piece...)
		next = at + int64(len(piece))
		if index := bytes.Index(window, needle); index >= 0 {
			found = at - int64(kept) + int64(index)
			return io.EOF
		}
		return nil
	})
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return found, err
}

// Copy makes a file with the same content and, like its original, no holes.
func Copy(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	stat, err := source.Stat()
	if err != nil {
		return err
	}
	target, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, stat.Mode().Perm())
	if err != nil {
		return err
	}
	return errors.Join(
		unix.Fallocate(int(target.Fd()), 0, 0, stat.Size()),
		walk(source, func(at int64, piece []byte) error {
			_, err := target.WriteAt(piece, at)
			return err
		}),
		target.Close())
}
