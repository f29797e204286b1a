package volume

import (
	"slices"

	"luksmediad/internal/config"
	"luksmediad/internal/state"
	"luksmediad/pkg/unlock"
)

// refusalVersion is raised when a field changes its meaning.
const refusalVersion = 1

// refusals remembers which PIN files a TPM has refused, beside the other states of the volume: every program that tries
// the PIN anew, at each boot and in each look ahead, would bring the TPM nearer to its lockout.
type refusals struct {
	states state.Store
	name   string
	// paths are those that are configured; what is of others is forgotten.
	paths []string
}

// refused is the content of the file.
type refused struct {
	PINs []unlock.RefusedPIN `json:"pins"`
}

func (v *Volume) pinFile(path string) *unlock.PINFile {
	return &unlock.PINFile{Path: path, Memory: refusals{v.states, "refused-" + v.Name(), pinPaths(v.config)}}
}

func pinPaths(c *config.Config) []string {
	var paths []string
	for _, source := range c.Unlock {
		if source.TPM2 != nil && source.TPM2.PINFile() != "" {
			paths = append(paths, source.TPM2.PINFile())
		}
	}
	return paths
}

// Refused implements [unlock.Refusals].
func (r refusals) Refused(pin unlock.RefusedPIN) bool { return slices.Contains(r.known(), pin) }

// Refuse implements [unlock.Refusals]. Of a file only its last state is kept, with all the tokens it is wrong for.
func (r refusals) Refuse(pin unlock.RefusedPIN) error {
	known := slices.DeleteFunc(r.known(), func(k unlock.RefusedPIN) bool {
		other := k
		other.Token = pin.Token
		return !slices.Contains(r.paths, k.Path) || k.Path == pin.Path && other != pin || k == pin
	})
	return r.states.Save(r.name, refusalVersion, refused{append(known, pin)})
}

// known is empty where nothing can be read: the next refusal writes the file anew.
func (r refusals) known() []unlock.RefusedPIN {
	var file refused
	if err := r.states.Load(r.name, refusalVersion, &file); err != nil {
		return nil
	}
	return file.PINs
}
