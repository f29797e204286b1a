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

// recordName is the file that remembers which of Synapse's media is the canary, and which were. It lies in the
// volume, so it lives and dies with the store.
const recordName = "canary.json"

// recordVersion is the version of the record's format.
const recordVersion = 1

// canarySide is the width and height of the canary, in pixels: with it Synapse makes a 32×32
// thumbnail by cropping, and the PNG has 12 kB, several blocks of the filesystem.
const canarySide = 64

// maxRecord bounds the record, in bytes: maxReplaced content URIs take most of it.
const maxRecord = 16 << 10

// maxReplaced is how many replaced canaries are remembered, those of a month; the oldest are forgotten.
const maxReplaced = 32

// record is what the volume remembers of the canaries.
type record struct {
	Version int `json:"version"`
	canary
	// Replaced are the content URIs of those before and of uploads that came to nothing, of which Synapse's database may still have a row.
	Replaced []string `json:"replaced,omitempty"`
}

// canary is what is known of the uploaded picture; zero if there is none.
type canary struct {
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

// loadRecord returns one without a canary if there is none, or none that can be used: another upload replaces it.
func loadRecord(dir *directory) (*record, error) {
	contents, err := dir.read(recordName, maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return &record{}, nil
	}
	if err != nil {
		return nil, err
	}
	return parseRecord(contents), nil
}

func parseRecord(contents []byte) *record {
	var r record
	if err := json.Unmarshal(contents, &r); err != nil || r.Version != recordVersion {
		return &record{}
	}
	media, err := mediaPath(r.URI)
	if err != nil {
		r.canary = canary{}
	}
	r.media = media
	return &r
}

// discard remembers what nobody needs any more.
func (r *record) discard(uri string) {
	r.Replaced = append(r.Replaced, uri)
	r.Replaced = r.Replaced[max(0, len(r.Replaced)-maxReplaced):]
}

func (r *record) save(dir *directory) error {
	r.Version = recordVersion
	contents, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return dir.replace(recordName, append(contents, '\n'))
}
