package swtpm_test

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"luksmediad/test/swtpm"
)

// ekName tells TPMs apart: the primary key of the endorsement seed is the same as long as the TPM is.
func ekName(t *testing.T, s *swtpm.TPM) string {
	t.Helper()
	var name string
	s.Do(func(tpm transport.TPM) error {
		primary, err := tpm2.CreatePrimary{
			PrimaryHandle: tpm2.TPMRHEndorsement,
			InPublic:      tpm2.New2B(tpm2.ECCEKTemplate),
		}.Execute(tpm)
		if err != nil {
			return err
		}
		name = string(primary.Name.Buffer)
		_, err = tpm2.FlushContext{FlushHandle: primary.ObjectHandle}.Execute(tpm)
		return err
	})
	return name
}

func pcr(t *testing.T, s *swtpm.TPM, n uint) string {
	t.Helper()
	var value string
	s.Do(func(tpm transport.TPM) error {
		read, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
			Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(n),
		}}}}.Execute(tpm)
		if err == nil {
			value = string(read.PCRValues.Digests[0].Buffer)
		}
		return err
	})
	return value
}

func TestRestartKeepsTheTPMAndResetsPCRs(t *testing.T) {
	s := swtpm.Start(t)
	before, zero := ekName(t, s), pcr(t, s, 7)
	s.Extend(7, "measured")
	if pcr(t, s, 7) == zero {
		t.Error("Extend left PCR 7 as it was")
	}
	s.Restart()
	if ekName(t, s) != before {
		t.Error("after Restart it is another TPM")
	}
	if pcr(t, s, 7) != zero {
		t.Error("after Restart PCR 7 is still extended")
	}
}

func TestReplaceIsAnotherTPM(t *testing.T) {
	s := swtpm.Start(t)
	before, address := ekName(t, s), s.TCTI()
	s.Replace()
	if ekName(t, s) == before {
		t.Error("after Replace it is the same TPM")
	}
	if s.TCTI() != address {
		t.Errorf("TCTI moved from %s to %s", address, s.TCTI())
	}
}

func TestStopRemovesTheSocket(t *testing.T) {
	s := swtpm.Start(t)
	s.Stop()
	if _, err := os.Stat(strings.TrimPrefix(s.TCTI(), "swtpm:path=")); !os.IsNotExist(err) {
		t.Errorf("Stat of the socket after Stop = %v, want not exist", err)
	}
}
