package health

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io/fs"
	"strings"
	"time"
)

// recordName is the file that remembers which of Synapse's media is the canary. It lies in the
// volume, so it lives and dies with the store.
const recordName = "canary.json"

// recordVersion is the version of the record's format.
const recordVersion = 1

// canarySide is the width and height of the canary, in pixels: with it Synapse makes a 32×32
// thumbnail by cropping, and the PNG has 12 kB, several blocks of the filesystem.
const canarySide = 64

const maxRecord = 4 << 10

// canary is what is known of the uploaded picture.
type canary struct {
	Version  int       `json:"version"`
	URI      string    `json:"uri"`    // mxc://server/media-id
	SHA256   string    `json:"sha256"` // of the uploaded bytes, in hex
	Uploaded time.Time `json:"uploaded"`

	media string // mediaPath(URI)
}

// original is the path of the uploaded file below the store.
func (c *canary) original() string { return "local_content/" + c.media }

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

// loadCanary returns nil without an error if there is no record, or none that can be used: another
// upload replaces it.
func loadCanary(dir *directory) (*canary, error) {
	contents, err := dir.read(recordName, maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseCanary(contents), nil
}

func parseCanary(contents []byte) *canary {
	var c canary
	if err := json.Unmarshal(contents, &c); err != nil || c.Version != recordVersion {
		return nil
	}
	media, err := mediaPath(c.URI)
	if err != nil {
		return nil
	}
	c.media = media
	return &c
}

func saveCanary(dir *directory, c canary) error {
	contents, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return dir.replace(recordName, append(contents, '\n'))
}
