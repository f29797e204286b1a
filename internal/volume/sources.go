package volume

import "luksmediad/pkg/unlock"

// Sources are the configured key sources in their order.
func (v *Volume) Sources() []unlock.Source {
	sources := make([]unlock.Source, len(v.config.Unlock))
	for i, source := range v.config.Unlock {
		if source.TPM2 != nil {
			sources[i] = unlock.TPM2{Device: source.TPM2.Device}
		} else {
			sources[i] = unlock.KeyFile{Path: source.Keyfile.Path}
		}
	}
	return sources
}
