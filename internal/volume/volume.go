package volume

import (
	"context"
	"os"
	"path/filepath"

	"luksmediad/internal/config"
	"luksmediad/internal/journal"
	"luksmediad/internal/state"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
)

// Runner starts programs; see [unlock.Runner] and [unlock.SecretRunner].
type Runner interface {
	Run(ctx context.Context, stdin *os.File, extra []*os.File, name string, args ...string) ([]byte, error)
	RunTo(ctx context.Context, stdin, stdout *os.File, name string, args ...string) error
}

// Observer hears what an operation does.
type Observer interface {
	Display
	Witness
}

// Display shows how far an operation is.
type Display interface {
	// Step says that a step begins.
	Step(step Step)
	// Progress says how many bytes of a long step are done.
	Progress(done, total int64)
}

// Witness takes down what an operation has done.
type Witness interface {
	// Attempt says that a key source did not open the container.
	Attempt(attempt unlock.Attempt)
	// Event says what has happened.
	Event(event journal.Event, fields ...journal.Field)
}

// Volume is the configured volume. Its methods are not for concurrent use.
type Volume struct {
	config     *config.Config
	states     state.Store
	paths      Paths
	runner     Runner
	cryptsetup unlock.Cryptsetup
	// failpoint is called between the durable steps of a create, an adopt, a grow and a move, before the first and before the last one too,
	// and may end it: for tests only.
	failpoint func(point string) error
}

// Paths are the folders that luksmediad owns.
type Paths struct {
	// State keeps records, header backups and private mount points; Runtime the locks.
	State, Runtime string
}

// New binds the operations to a configuration.
func New(config *config.Config, paths Paths, runner Runner) *Volume {
	return &Volume{
		config:     config,
		states:     state.Store{Dir: paths.State},
		paths:      paths,
		runner:     runner,
		cryptsetup: unlock.Cryptsetup{Runner: runner},
	}
}

// Name is the configured name.
func (v *Volume) Name() string { return v.config.Volume.Name }

// MappingName is the name below /dev/mapper.
func (v *Volume) MappingName() string { return v.config.Volume.Mapping() }

// Root is the private directory where the volume is mounted.
func (v *Volume) Root() string { return v.config.Volume.Root() }

// PrivateDir is the root-only folder in the volume: marker, canary, probe files.
func (v *Volume) PrivateDir() string { return filepath.Join(v.Root(), ".luksmediad") }

// Store is the folder in the volume that belongs to the store called name.
func (v *Volume) Store(name string) string { return filepath.Join(v.Root(), "stores", name) }

// Acquire keeps every other process from operating on the volume until released. It waits as long as ctx allows and
// fails with [state.ErrBusy].
func (v *Volume) Acquire(ctx context.Context) (release func() error, err error) {
	return state.LockWait(ctx, filepath.Join(v.paths.Runtime, v.Name()+".lock"))
}

// CheckHost fails if this process could not open the volume where others see it.
func (v *Volume) CheckHost() error {
	if err := mount.InInitialNamespace(); err != nil {
		return err
	}
	return unlock.CheckDeviceMapper()
}
