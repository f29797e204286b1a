//go:build boot

package boot

import (
	"bytes"
	crand "crypto/rand"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// windowBytes is long enough that random bytes do not hold a given window by chance.
const windowBytes = 64

// newPicture is a PNG of fresh noise: no compression can change its bytes, and no earlier disk can hold them. It is
// larger than the 100 kB up to which Synapse's web server keeps an upload in memory until it is complete.
func newPicture(t *testing.T) []byte {
	t.Helper()
	var seed [32]byte
	_, _ = crand.Read(seed[:])
	noise := rand.NewChaCha8(seed)
	picture := image.NewNRGBA(image.Rect(0, 0, 200, 200))
	_, _ = noise.Read(picture.Pix)
	for i := 3; i < len(picture.Pix); i += 4 {
		picture.Pix[i] = 0xff // opaque: the encoder then leaves alpha out
	}
	var out bytes.Buffer
	if err := png.Encode(&out, picture); err != nil {
		t.Fatal(err)
	}
	if out.Len() <= 100_000 {
		t.Fatalf("the picture has %d bytes", out.Len())
	}
	return out.Bytes()
}

// windows takes count pieces from all over the data, none across a block's border: blocks need not lie side by side on a disk.
func windows(data []byte, count int) [][]byte {
	const block = 4096
	found := make([][]byte, 0, count)
	for i := range count {
		offset := (2*i + 1) * len(data) / (2 * count)
		offset = min(offset, offset/block*block+block-windowBytes)
		found = append(found, data[offset:offset+windowBytes])
	}
	return found
}

// search returns the byte offsets in the file, at most one per window, where windows occur. Holes are skipped.
func search(t *testing.T, path string, windows [][]byte) []int64 {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	hits := make(map[int]int64)
	for end := int64(0); ; {
		start, err := file.Seek(end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if end, err = file.Seek(start, unix.SEEK_HOLE); err != nil {
			t.Fatal(err)
		}
		if err := searchData(file, start, end, windows, hits); err != nil {
			t.Fatal(err)
		}
	}
	offsets := make([]int64, 0, len(hits))
	for _, offset := range hits {
		offsets = append(offsets, offset)
	}
	return offsets
}

func searchData(file io.ReaderAt, start, end int64, windows [][]byte, hits map[int]int64) error {
	const step = 4 << 20
	buffer := make([]byte, step+windowBytes)
	for at := start; at < end; at += step {
		n, err := file.ReadAt(buffer[:min(int64(len(buffer)), end-at)], at)
		if err != nil && err != io.EOF {
			return fmt.Errorf("cannot read the disk at %d: %w", at, err)
		}
		for i, window := range windows {
			if offset := bytes.Index(buffer[:n], window); offset >= 0 {
				hits[i] = at + int64(offset)
			}
		}
	}
	return nil
}
