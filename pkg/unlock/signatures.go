package unlock

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"luksmediad/pkg/unlock/tpm2"
)

// maxSignatureBytes bounds a file of signatures: systemd-measure writes some KiB.
const maxSignatureBytes = 1 << 20

// SignatureFiles lists where systemd looks for signed PCR policies, in its order (src/shared/tpm2-util.c,
// tpm2_load_pcr_signature, and CONF_PATHS).
func SignatureFiles() []string {
	return []string{
		"/etc/systemd/tpm2-pcr-signature.json",
		"/run/systemd/tpm2-pcr-signature.json",
		"/usr/local/lib/systemd/tpm2-pcr-signature.json",
		"/usr/lib/systemd/tpm2-pcr-signature.json",
	}
}

// ReadSignatures reads the first of paths that is there; nil if none is.
func ReadSignatures(paths ...string) (*tpm2.Signatures, error) {
	for _, path := range paths {
		file, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read the PCR signatures: %w: %w", tpm2.ErrSignature, err)
		}
		defer file.Close()
		content, err := io.ReadAll(io.LimitReader(file, maxSignatureBytes))
		if err != nil {
			return nil, fmt.Errorf("cannot read the PCR signatures in %s: %w: %w", path, tpm2.ErrSignature, err)
		}
		return tpm2.ParseSignatures(content)
	}
	return nil, nil
}
