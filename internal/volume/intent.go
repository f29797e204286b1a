package volume

import (
	"errors"
	"io/fs"

	"luksmediad/internal/state"
)

// Intent is what a person wants of the volume and outlives the daemon. It is gone with the next boot, which opens the volume by itself.
type Intent string

const (
	// IntentOpen: nothing else than that the volume is open.
	IntentOpen Intent = ""
	// IntentLocked: it stays closed until somebody asks for it.
	IntentLocked Intent = "locked"
	// IntentStopped: services that were stopped for a lock that has failed stay so until somebody asks for the volume.
	IntentStopped Intent = "stopped"
)

const intentVersion = 1

// Intent is what was wanted last.
func (v *Volume) Intent() (intent Intent, err error) {
	err = v.runtime().Load(v.intentName(), intentVersion, &intent)
	if errors.Is(err, fs.ErrNotExist) {
		return IntentOpen, nil
	}
	return intent, err
}

// SetIntent notes what is wanted from now on.
func (v *Volume) SetIntent(intent Intent) error {
	if intent == IntentOpen {
		return v.runtime().Remove(v.intentName())
	}
	return v.runtime().Save(v.intentName(), intentVersion, intent)
}

// runtime keeps what is gone with the next boot.
func (v *Volume) runtime() state.Store { return state.Store{Dir: v.paths.Runtime} }

func (v *Volume) intentName() string { return v.Name() + ".intent" }
