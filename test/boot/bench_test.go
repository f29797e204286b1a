//go:build boot

package boot

import (
	"bytes"
	"testing"
)

// TestBench proves the bench itself, without luksmediad: the machine has its TPM, Synapse keeps its pictures over a power
// cut, and a picture that lies in clear text on the disk is found there.
func TestBench(t *testing.T) {
	m := NewMachine(t)
	m.Boot()
	m.Run("test -c /dev/tpmrm0")
	m.Run("docker start synapse")
	m.WaitForSynapse()
	picture := newPicture(t)
	id := m.Upload(picture)
	m.Thumbnail(id)
	m.Run("sync")
	m.Cut()
	if hits := search(t, m.Disk(), windows(picture, 8)); len(hits) != 8 {
		t.Errorf("%d of 8 pieces of a plaintext picture found on the disk", len(hits))
	}

	m.Boot()
	m.WaitForSynapse()
	m.Thumbnail(id)
	if !bytes.Equal(m.Download(id), picture) {
		t.Error("the picture differs after the power cut")
	}
	m.Shutdown()
}
