package unlock

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"

	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
)

// Credential offers the content of a credential that systemd has handed to a service (systemd.exec(5),
// LoadCredentialEncrypted=), every byte of it.
type Credential struct {
	// ID is the name of the credential.
	ID string
	// Folders may have it; the first that does counts. One that is empty is none.
	Folders []string
}

// Name is "credential".
func (c Credential) Name() string { return "credential" }

// Offers yields the key for the keyslots that no token claims, the cheapest derivation first.
func (c Credential) Offers(_ context.Context, header *luks2.Header) iter.Seq2[Offer, error] {
	return untokened(header, c.Read)
}

// Read returns the key. The file is opened once and judged by its descriptor, as [KeyFile.Read] does, but may belong to
// root as well: systemd gives it to the service's user by an access list, which shows as permissions of the group. It
// fails with [ErrCredentialMissing] or [ErrCredentialUnsafe].
func (c Credential) Read() (*secret.Key, error) {
	file := privateFile{
		what: "credential", missing: ErrCredentialMissing, unsafe: ErrCredentialUnsafe, mounted: ErrCredentialUnsafe,
		owners: []int{os.Geteuid(), 0}, modes: 0o640, modesText: "0400 or 0440",
	}
	for _, folder := range c.Folders {
		if folder == "" {
			continue
		}
		key, err := file.read(filepath.Join(folder, c.ID))
		if !errors.Is(err, ErrCredentialMissing) {
			return key, err
		}
	}
	return nil, fmt.Errorf("cannot find credential %s in %s: %w", c.ID, c.places(), ErrCredentialMissing)
}

func (c Credential) places() string {
	var places []string
	for _, folder := range c.Folders {
		if folder != "" {
			places = append(places, folder)
		}
	}
	return strings.Join(places, " or ")
}
