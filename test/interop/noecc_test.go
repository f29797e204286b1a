//go:build interop

package interop

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"luksmediad/test/swtpm"
)

// withoutECC puts something before the TPM that makes no primary keys on elliptic curves, like TPMs that have none, and
// gives its address. swtpm cannot be told to have none.
func withoutECC(t *testing.T, s *swtpm.TPM) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "noecc") // not t.TempDir, for a socket's path may have 107 bytes (unix(7))
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "tpm.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(s.Socket()+".ctrl", socket+".ctrl"); err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			served.Go(func() { serveWithoutECC(client, s.Socket()) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		served.Wait()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return "swtpm:path=" + socket
}

func serveWithoutECC(client net.Conn, socket string) {
	defer client.Close()
	tpm, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer tpm.Close()
	for {
		command, err := readMessage(client)
		if err != nil {
			return
		}
		response := []byte{0x80, 0x01, 0, 0, 0, 10, 0, 0, 0, 0xa6} // TPM_RC_CURVE
		if !makesECC(command) {
			if _, err := tpm.Write(command); err != nil {
				return
			}
			if response, err = readMessage(tpm); err != nil {
				return
			}
		}
		if _, err := client.Write(response); err != nil {
			return
		}
	}
}

// readMessage reads a command or a response: tag, size of the whole, the rest.
func readMessage(r io.Reader) ([]byte, error) {
	head := make([]byte, 6)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	message := append(head, make([]byte, binary.BigEndian.Uint32(head[2:])-6)...)
	_, err := io.ReadFull(r, message[6:])
	return message, err
}

// makesECC finds the type in a TPM2_CreatePrimary: behind handle and authorisation area, and inSensitive.
func makesECC(command []byte) bool {
	if tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) != tpm2.TPMCCCreatePrimary {
		return false
	}
	rest := command[14:]
	rest = rest[4+binary.BigEndian.Uint32(rest):]
	rest = rest[2+binary.BigEndian.Uint16(rest):]
	return tpm2.TPMAlgID(binary.BigEndian.Uint16(rest[2:])) == tpm2.TPMAlgECC
}
