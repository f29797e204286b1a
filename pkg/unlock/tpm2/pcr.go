package tpm2

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/google/go-tpm-tools/client"
	legacy "github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpm2"
)

// maxPCRs is the number of PCRs of a PC (TCG PC Client Platform TPM Profile), which systemd assumes too.
const maxPCRs = 24

// Bank names the hash algorithm of a set of PCRs, as systemd writes it.
type Bank string

// The banks that tokens name.
const (
	SHA1   Bank = "sha1"
	SHA256 Bank = "sha256"
	SHA384 Bank = "sha384"
	SHA512 Bank = "sha512"
)

func (b Bank) algorithm() (tpm2.TPMIAlgHash, error) {
	switch b {
	case SHA1:
		return tpm2.TPMAlgSHA1, nil
	case SHA256:
		return tpm2.TPMAlgSHA256, nil
	case SHA384:
		return tpm2.TPMAlgSHA384, nil
	case SHA512:
		return tpm2.TPMAlgSHA512, nil
	}
	return 0, fmt.Errorf("PCR bank %q: %w", string(b), ErrUnsupported)
}

// checkPCRs refuses numbers that are out of range or occur twice.
func checkPCRs(pcrs []int) error {
	for i, pcr := range pcrs {
		if pcr < 0 || pcr >= maxPCRs {
			return fmt.Errorf("%d is no PCR: they go from 0 to %d", pcr, maxPCRs-1)
		}
		if slices.Contains(pcrs[:i], pcr) {
			return fmt.Errorf("PCR %d occurs twice", pcr)
		}
	}
	return nil
}

// selection is what PolicyPCR binds and hashes.
func selection(algorithm tpm2.TPMIAlgHash, pcrs []int) tpm2.TPMLPCRSelection {
	numbers := make([]uint, len(pcrs))
	for i, pcr := range pcrs {
		numbers[i] = uint(pcr)
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
		Hash:      algorithm,
		PCRSelect: tpm2.PCClientCompatible.PCRs(numbers...),
	}}}
}

// ReadPCRs reads the current values of PCRs of one bank, by number. A PCR that
// the TPM does not keep in that bank is [ErrBankUnavailable].
func (d *Device) ReadPCRs(ctx context.Context, bank Bank, pcrs []int) (map[int][]byte, error) {
	tpm, end := d.begin(ctx)
	defer end()
	return tpm.readPCRs(bank, pcrs)
}

func (b bus) readPCRs(bank Bank, pcrs []int) (map[int][]byte, error) {
	if err := checkPCRs(pcrs); err != nil {
		return nil, fmt.Errorf("cannot read PCRs: %w: %w", ErrUnsupported, err)
	}
	algorithm, err := bank.algorithm()
	if err != nil {
		return nil, fmt.Errorf("cannot read PCRs: %w", err)
	}
	read, err := client.ReadPCRs(&readWriter{tpm: b}, legacy.PCRSelection{Hash: legacy.Algorithm(algorithm), PCRs: pcrs})
	if err != nil {
		return nil, failure(fmt.Sprintf("read %s PCRs %v", bank, pcrs), err)
	}
	values := make(map[int][]byte, len(pcrs))
	for _, pcr := range pcrs {
		// The TPM leaves out what it does not keep.
		value := read.GetPcrs()[uint32(pcr)]
		if value == nil {
			return nil, fmt.Errorf("cannot read %s PCR %d: %w", bank, pcr, ErrBankUnavailable)
		}
		values[pcr] = value
	}
	return values, nil
}

// readWriter lets code for a byte stream use the bus. go-tpm's own adapter
// reports io.EOF together with the response, which go-tpm's reader takes for a failure.
type readWriter struct {
	tpm      bus
	response []byte
}

func (rw *readWriter) Write(command []byte) (int, error) {
	response, err := rw.tpm.Send(command)
	if err != nil {
		return 0, err
	}
	// Here and not in the caller, which would turn it into an error type of its own.
	if code := responseCode(response); code != tpm2.TPMRCSuccess {
		return 0, code
	}
	rw.response = response
	return len(command), nil
}

func (rw *readWriter) Read(p []byte) (int, error) {
	if len(rw.response) == 0 {
		return 0, io.EOF
	}
	n := copy(p, rw.response)
	rw.response = rw.response[n:]
	return n, nil
}
