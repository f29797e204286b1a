//go:build boot

package boot

import (
	"bytes"
	"compress/flate"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// blockSize is that of both file systems, the disk's and the volume's.
const blockSize = 4096

// location is where the first block of an uploaded picture lies, in bytes.
type location struct {
	mapping   int64 // from the start of the open mapping
	container int64 // from the start of the container file
	disk      int64 // from the start of the machine's disk
}

// locate follows an uploaded picture down to the disk, and has the guest read the block at each level to show that the
// way is right.
func (m *Machine) locate(id string) location {
	m.t.Helper()
	_, media, _ := strings.Cut(id, "/")
	file := mediaStore + "/local_content/" + media[:2] + "/" + media[2:4] + "/" + media[4:]
	var at location
	at.mapping = m.physical(file, 0)
	at.container = m.dataOffset() + at.mapping
	at.disk = m.physical(container, at.container)
	mapping := strings.TrimSpace(m.Run("findmnt --noheadings --nofsroot --output SOURCE --mountpoint " + mediaStore))
	if m.readBlock(mapping, at.mapping) != m.Run(fmt.Sprintf("head --bytes %d %s", blockSize, file)) {
		m.t.Fatalf("byte %d of %s is not the start of the picture", at.mapping, mapping)
	}
	if m.readBlock(container, at.container) != m.readBlock("/dev/vda", at.disk) {
		m.t.Fatalf("byte %d of the disk is not byte %d of the container", at.disk, at.container)
	}
	return at
}

// physical returns where the byte of the file lies on its file system's device.
func (m *Machine) physical(file string, offset int64) int64 {
	m.t.Helper()
	for line := range strings.Lines(m.Run(fmt.Sprintf("sync %s && filefrag -v -b%d %s", file, blockSize, file))) {
		//   0:        0..      18:      34304..     34322:     19:             last,eof
		fields := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(":. \n", r) })
		if len(fields) < 6 {
			continue
		}
		first, err1 := strconv.ParseInt(fields[1], 10, 64)
		last, err2 := strconv.ParseInt(fields[2], 10, 64)
		start, err3 := strconv.ParseInt(fields[3], 10, 64)
		if block := offset / blockSize; err1 == nil && err2 == nil && err3 == nil && first <= block && block <= last {
			return (start+block-first)*blockSize + offset%blockSize
		}
	}
	m.t.Fatalf("%s has no block for byte %d", file, offset)
	return 0
}

// dataOffset is where in the container the encrypted data begins, in bytes.
func (m *Machine) dataOffset() int64 {
	m.t.Helper()
	var header struct {
		Segments map[string]struct {
			Offset int64 `json:",string"`
		}
	}
	if err := json.Unmarshal([]byte(m.Run("cryptsetup luksDump --dump-json-metadata "+container)), &header); err != nil {
		m.t.Fatalf("luksDump: %v", err)
	}
	return header.Segments["0"].Offset
}

// readBlock reads past the guest's page cache.
func (m *Machine) readBlock(path string, offset int64) string {
	m.t.Helper()
	return m.Run(fmt.Sprintf("dd if=%s bs=%d skip=%d count=1 iflag=direct status=none", path, blockSize, offset/blockSize))
}

// checkRawDisk looks at the switched-off machine's disk as its provider could: where the picture lies is garbage, and
// neither it nor its thumbnail is anywhere else.
func (m *Machine) checkRawDisk(at location, picture, thumbnail, control []byte) {
	disk, err := os.Open(m.Disk())
	if err != nil {
		m.t.Fatal(err)
	}
	defer disk.Close()
	block := make([]byte, blockSize)
	if _, err := disk.ReadAt(block, at.disk); err != nil {
		m.t.Fatal(err)
	}
	m.t.Logf("the picture's first bytes:\n%sthe same bytes on the disk:\n%s", hex.Dump(picture[:64]), hex.Dump(block[:64]))
	if !random(block) {
		m.t.Error("the picture's block on the disk does not look random")
	}
	if hits := search(m.t, m.Disk(), windows(control, 4)); len(hits) != 4 {
		m.t.Fatalf("the search finds %d of 4 pieces of what is in clear text on the disk", len(hits))
	}
	if hits := search(m.t, m.Disk(), append(windows(picture, 8), windows(thumbnail, 4)...)); len(hits) > 0 {
		m.t.Errorf("pieces of the picture in clear text on the disk, at bytes %d", hits)
	}
}

// random is false for anything that can be compressed; zeros above all.
func random(block []byte) bool {
	var out bytes.Buffer
	compressor, _ := flate.NewWriter(&out, flate.BestCompression)
	_, _ = compressor.Write(block)
	_ = compressor.Close()
	return out.Len() >= len(block)
}
