package unlock

import (
	"context"
	"iter"

	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
)

// Source is one way to get a key.
type Source interface {
	// Name is the configured word for the source, such as "tpm2".
	Name() string
	// Offers yields the keys the source has for header, one by one, and the errors it met on the way: an error ends
	// one offer, not the source. The receiver wipes each key.
	Offers(ctx context.Context, header *luks2.Header) iter.Seq2[Offer, error]
}

// Offer is a key and the keyslots it is meant for, in the order to try them.
type Offer struct {
	Key      *secret.Key
	Keyslots []int
}
