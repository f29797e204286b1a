//go:build boot

package boot

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image"
	_ "image/jpeg" // Synapse chooses the format of a thumbnail
	_ "image/png"
	"strings"
	"time"
)

// What guest/home/ubuntu/app/synapse_data sets.
const (
	synapseHost  = "127.0.0.1"
	synapsePort  = "8008"
	synapseURL   = "http://" + synapseHost + ":" + synapsePort
	synapseToken = "as-token-of-the-boot-test"
	synapseData  = "/home/ubuntu/app/synapse_data"
	mediaStore   = synapseData + "/media_store"
)

const curl = "curl --silent --show-error --fail-with-body --max-time 60 "

// WaitForSynapse waits until Synapse answers in its container.
func (m *Machine) WaitForSynapse() {
	m.t.Helper()
	start := time.Now()
	m.Eventually(bootDeadline, "Synapse answers", func() error {
		// The shell itself looks for the port: to start curl again and again would take a good part of an emulated processor.
		_, err := m.Try("for i in $(seq 100); do { : </dev/tcp/" + synapseHost + "/" + synapsePort + "; } 2>/dev/null && break; sleep 0.2; done; " +
			curl + synapseURL + "/health || { docker logs --tail 5 synapse >&2; false; }")
		return err
	})
	m.t.Logf("Synapse answers after another %s", since(start))
}

// Upload posts a picture as a Matrix client does and returns its id, "server/media". The picture goes through pipes only.
func (m *Machine) Upload(picture []byte) string {
	m.t.Helper()
	answer := m.Pipe(bytes.NewReader(picture), curl+"--data-binary @- --header 'Content-Type: image/png' "+
		authorization+synapseURL+"/_matrix/media/v3/upload?filename=boot.png")
	var uploaded struct {
		URI string `json:"content_uri"`
	}
	if err := json.Unmarshal([]byte(answer), &uploaded); err != nil {
		m.t.Fatalf("upload: %v: %s", err, answer)
	}
	id, found := strings.CutPrefix(uploaded.URI, "mxc://")
	if !found {
		m.t.Fatalf("upload: %s", answer)
	}
	return id
}

// Thumbnail asks Synapse for a small form of the picture and returns the file, an image that decodes.
func (m *Machine) Thumbnail(id string) []byte {
	m.t.Helper()
	return m.thumbnailOf(id, 96)
}

// thumbnailOf wants a thumbnail of just this size.
func (m *Machine) thumbnailOf(id string, side int) []byte {
	m.t.Helper()
	thumbnail := []byte(m.Run(curl + authorization + quote(fmt.Sprintf("%s/_matrix/client/v1/media/thumbnail/%s?width=%d&height=%d&method=crop",
		synapseURL, id, side, side))))
	decoded, _, err := image.Decode(bytes.NewReader(thumbnail))
	if err != nil {
		m.t.Fatalf("thumbnail of %s: %v", id, err)
	}
	if size := decoded.Bounds().Size(); size != image.Pt(side, side) {
		m.t.Fatalf("thumbnail of %s is %v", id, size)
	}
	return thumbnail
}

// Download returns the picture itself.
func (m *Machine) Download(id string) []byte {
	m.t.Helper()
	return []byte(m.Run(curl + authorization + synapseURL + "/_matrix/client/v1/media/download/" + id))
}

const authorization = "--header 'Authorization: Bearer " + synapseToken + "' "

// quote makes one word of the text for the guest's shell.
func quote(text string) string {
	return fmt.Sprintf("'%s'", strings.ReplaceAll(text, "'", `'\''`))
}
