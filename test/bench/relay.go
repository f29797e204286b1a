package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/google/go-tpm/tpm2"
)

// relay stands between a client and a TPM and takes down the commands.
type relay struct {
	path, socket string
	listener     net.Listener

	mu   sync.Mutex
	sent []tpm2.TPMCC
}

func newRelay(socket string) (*relay, error) {
	r := &relay{path: socket + ".relay", socket: socket}
	var err error
	if r.listener, err = net.Listen("unix", r.path); err != nil {
		return nil, err
	}
	go r.serve()
	return r, nil
}

// Close ends the listening.
func (r *relay) Close() error { return r.listener.Close() }

func (r *relay) serve() {
	for {
		client, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.connect(client)
	}
}

// connect relays until either side hangs up. A client sends a command in one piece.
func (r *relay) connect(client net.Conn) {
	defer client.Close()
	tpm, err := net.Dial("unix", r.socket)
	if err != nil {
		return
	}
	defer tpm.Close()
	buffer := make([]byte, 4096)
	for {
		n, err := client.Read(buffer)
		if err != nil || n < 10 {
			return
		}
		r.note(buffer[:n])
		if exchange(tpm, client, buffer, n) != nil {
			return
		}
	}
}

func exchange(tpm, client net.Conn, buffer []byte, n int) error {
	if _, err := tpm.Write(buffer[:n]); err != nil {
		return err
	}
	n, err := tpm.Read(buffer)
	if err != nil && err != io.EOF {
		return err
	}
	_, err = client.Write(buffer[:n])
	return err
}

// note reads the code behind tag and size (TPM 2.0 Library, Part 1, "Command/Response Structure").
func (r *relay) note(command []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent = append(r.sent, tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])))
}

// commands names what was sent, in order.
func (r *relay) commands() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	names := make([]string, len(r.sent))
	for i, code := range r.sent {
		names[i] = commandName(code)
	}
	return names
}

func commandName(code tpm2.TPMCC) string {
	names := map[tpm2.TPMCC]string{
		tpm2.TPMCCReadPublic: "ReadPublic", tpm2.TPMCCLoad: "Load", tpm2.TPMCCStartAuthSession: "StartAuthSession",
		tpm2.TPMCCPolicyPCR: "PolicyPCR", tpm2.TPMCCUnseal: "Unseal", tpm2.TPMCCFlushContext: "FlushContext",
		tpm2.TPMCCCreatePrimary: "CreatePrimary", tpm2.TPMCCGetCapability: "GetCapability",
	}
	if name, ok := names[code]; ok {
		return name
	}
	return fmt.Sprintf("%#x", uint32(code))
}
