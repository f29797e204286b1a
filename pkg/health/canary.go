package health

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io/fs"
	"path/filepath"
	"strings"
	"time"
)

// canarySide is the width and height of the canary, in pixels: with it Synapse makes a 32×32
// thumbnail by cropping, and the PNG has 12 kB, several blocks of the filesystem.
const canarySide = 64

// canary is what is known of the uploaded picture; zero if there is none.
type canary struct {
	URI      string    `json:"uri"`    // mxc://server/media-id
	SHA256   string    `json:"sha256"` // of the uploaded bytes, in hex
	Uploaded time.Time `json:"uploaded"`
}

// isUsable tells whether the canary has a place in a store; nothing else is ever put on record.
func (c *canary) isUsable() bool {
	_, err := mediaPath(c.URI)
	return err == nil
}

// original is the path of the uploaded file below the store, thumbnails that of the folder for what Synapse makes of it.
func (c *canary) original() string { return "local_content/" + c.media() }

func (c *canary) thumbnails() string { return "local_thumbnails/" + c.media() }

func (c *canary) media() string {
	media, _ := mediaPath(c.URI) // isUsable
	return media
}

// match compares the original with what was uploaded. The error is fs.ErrNotExist if the original is gone.
func (c *canary) match(store *directory) error {
	contents, err := store.read(c.original(), maxPicture)
	if err != nil {
		return err
	}
	if digest(contents) != c.SHA256 {
		return &Failure{ReasonIO, fmt.Errorf("cannot trust %s: it has other bytes than were uploaded", filepath.Join(store.path, c.original()))}
	}
	return nil
}

// check matches the original and drops it from the page cache, so that Synapse has to read the disk.
func (c *canary) check(store *directory) error {
	if err := c.match(store); err != nil {
		return err
	}
	return store.evict(c.original())
}

// remove removes the files. An original with other bytes stays: it is somebody's, or the evidence of a damage.
func (c *canary) remove(store *directory) error {
	if err := c.match(store); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := removeThumbnails(store, c.thumbnails()); err != nil {
		return err
	}
	return errors.Join(store.remove(c.original()), store.removeEmpty(c.thumbnails()))
}

// newPicture makes a PNG of noise. Its bytes occur nowhere else: Synapse quarantines by hash, so
// a canary that repeats could be taken away with another's bytes.
func newPicture() ([]byte, error) {
	picture := image.NewNRGBA(image.Rect(0, 0, canarySide, canarySide))
	rand.Read(picture.Pix) // never fails, crypto/rand
	for i := 3; i < len(picture.Pix); i += 4 {
		picture.Pix[i] = 0xff
	}
	var encoded bytes.Buffer
	encoder := png.Encoder{CompressionLevel: png.NoCompression}
	if err := encoder.Encode(&encoded, picture); err != nil {
		return nil, fmt.Errorf("cannot encode a canary: %w", err)
	}
	return encoded.Bytes(), nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// mediaPath is where Synapse keeps local media below local_content and local_thumbnails:
// synapse/media/filepath.py. It refuses an id that is not one path component long enough to split.
func mediaPath(uri string) (string, error) {
	rest, ok := strings.CutPrefix(uri, "mxc://")
	server, id, both := strings.Cut(rest, "/")
	if !ok || !both || server == "" || len(id) < 5 || strings.ContainsFunc(id, notMediaID) {
		return "", fmt.Errorf("cannot use the content URI %q: not mxc://server/media-id", uri)
	}
	return id[0:2] + "/" + id[2:4] + "/" + id[4:], nil
}

// notMediaID is the complement of the characters of a media id, Matrix Client-Server API, "Content
// repository", Security considerations.
func notMediaID(r rune) bool {
	return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '_' || r == '-')
}
