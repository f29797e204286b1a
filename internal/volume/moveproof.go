package volume

import (
	"luksmediad/internal/journal"
	"luksmediad/internal/transfer"
)

// tellProof says how many entries a verification has compared, how many files it has read past the page cache and in which way, and why
// not from the device.
func (m *mover) tellProof(proof *transfer.Proof) {
	fields := []journal.Field{
		journal.F("STORE", m.store.Name), journal.F("ENTRIES", proof.Totals.Entries), journal.F("READ_DEVICE", proof.Read[transfer.MeansDevice]),
		journal.F("READ_DIRECT", proof.Read[transfer.MeansDirect]), journal.F("READ_CACHE", proof.Read[transfer.MeansCache]),
	}
	if proof.DeviceRefused != nil {
		fields = append(fields, journal.F("DEVICE_REFUSED", proof.DeviceRefused.Error()))
	}
	m.observer.Event(journal.CopyVerified, fields...)
}
