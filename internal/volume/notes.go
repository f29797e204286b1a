package volume

import (
	"errors"
	"io/fs"

	"luksmediad/internal/state"
)

// Notes are what probes remember from one process to the next; a name has one form of content.
type Notes struct {
	states state.Store
	name   string
}

// notesVersion is raised when the content of any note changes its meaning.
const notesVersion = 1

// Notes are those of that name about the volume.
func (v *Volume) Notes(name string) Notes { return Notes{v.states, name + "-" + v.Name()} }

// Load reads what was saved last; nothing is no failure.
func (n Notes) Load(into any) error {
	if err := n.states.Load(n.name, notesVersion, into); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Save replaces it.
func (n Notes) Save(content any) error { return n.states.Save(n.name, notesVersion, content) }
