package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/unit"
)

// The units whose files are in deploy/systemd.
const (
	serviceUnit = "luksmediad.service"
	gateUnit    = "luksmediad-gate.service"
	// dockerUnit is Docker's own.
	dockerUnit = "docker.service"
)

// Machine is the host below its root directory, as the next boot will find it.
type Machine struct {
	Root string
}

// unitFolders are those that survive a boot, the one first whose files count (systemd.unit(5), "Unit File Load Path").
func unitFolders() []string {
	return []string{"/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}
}

var (
	// ErrNotInstalled: a unit has no file, and so cannot be enabled.
	ErrNotInstalled = errors.New("not installed")
	// ErrMasked: a unit may not be started, and so cannot be enabled.
	ErrMasked = errors.New("masked")
)

// Service checks that something starts luksmediad: it is enabled, or a unit that uses the stores asks for it through the
// gate.
func (m Machine) Service(dependents []string) Check {
	const name = "service"
	if err := m.installed(serviceUnit); err != nil {
		return failure(name, fmt.Errorf("%w: %w", err, ErrNotStarted))
	}
	if m.wanted(unitFolders(), serviceUnit) {
		return Check{Name: name, Status: OK, Text: "enabled"}
	}
	if i := slices.IndexFunc(dependents, func(d string) bool { return m.requires(d, gateUnit) && m.exists(d) }); i >= 0 && m.installed(gateUnit) == nil {
		return warning(name, fmt.Errorf("%s is not enabled, and waits until %s starts: %w", serviceUnit, dependents[i], ErrNotStarted))
	}
	return failure(name, fmt.Errorf("%s is not enabled: %w", serviceUnit, ErrNotStarted))
}

var (
	// ErrUngated: what uses the stores does not wait until they are there.
	ErrUngated = errors.New("not held back by the gate")
	// ErrNoUnit: no drop-in helps.
	ErrNoUnit = errors.New("no unit of this system that would be started")
)

// Gate checks that what uses the stores waits for them. A unit that is not there holds nothing back, whatever its drop-in says: its
// service runs otherwise, as a Docker of a user or of snap does.
func (m Machine) Gate(dependents []string) Check {
	const name = "gate"
	if err := m.installed(gateUnit); err != nil {
		return warning(name, fmt.Errorf("%w: %w", err, ErrUngated))
	}
	for _, dependent := range dependents {
		if !m.exists(dependent) {
			return warning(name, fmt.Errorf("%s is %w: %w", dependent, ErrNoUnit, ErrUngated))
		}
	}
	free := slices.DeleteFunc(slices.Clone(dependents), m.waits)
	if len(free) > 0 {
		return warning(name, fmt.Errorf("%s does not require %s, or is not ordered after it: %w", strings.Join(free, ", "), gateUnit, ErrUngated))
	}
	return Check{Name: name, Status: OK, Text: "holds back " + strings.Join(dependents, ", ")}
}

func failure(name string, err error) Check { return Check{name, Failed, err.Error(), err} }

func warning(name string, err error) Check { return Check{name, Warning, err.Error(), err} }

// installed fails if a unit has no file, or one that keeps it from starting.
func (m Machine) installed(name string) error {
	for _, folder := range unitFolders() {
		path := filepath.Join(m.Root, folder, name)
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		target, _ := os.Readlink(path)
		if target == os.DevNull || info.Mode().IsRegular() && info.Size() == 0 { // systemd.unit(5): masked
			return fmt.Errorf("%s is %w by %s", name, ErrMasked, filepath.Join(folder, name))
		}
		return nil
	}
	return fmt.Errorf("%s: %w", name, ErrNotInstalled)
}

// generatedFolders are where generators, as that of quadlet, put units at each boot (systemd.generator(7)).
func generatedFolders() []string {
	return []string{"/run/systemd/generator", "/run/systemd/generator.early", "/run/systemd/generator.late"}
}

// exists tells whether a unit that may be started has a file: of its own, of its template, or one that is generated.
func (m Machine) exists(name string) bool {
	err := m.installed(name)
	if !errors.Is(err, ErrNotInstalled) {
		return err == nil
	}
	if before, instance, ok := strings.Cut(name, "@"); ok && m.installed(before+"@"+filepath.Ext(instance)) == nil {
		return true
	}
	return slices.ContainsFunc(generatedFolders(), func(folder string) bool {
		_, err := os.Lstat(filepath.Join(m.Root, folder, name))
		return err == nil
	})
}

// wanted tells whether another unit pulls a unit in by a link, as systemctl enable makes them.
func (m Machine) wanted(folders []string, name string) bool {
	for _, folder := range folders {
		for _, kind := range []string{"wants", "requires"} {
			// The pattern is sound: names of units have nothing that is special in it but what is escaped.
			links, _ := filepath.Glob(filepath.Join(m.Root, folder, "*."+kind, strings.ReplaceAll(name, `\`, `\\`)))
			if len(links) > 0 {
				return true
			}
		}
	}
	return false
}

// waits tells whether a unit requires the gate and starts after it, or does so with Docker, which waits itself. The gate orders itself before
// Docker, and a target is ordered after what it requires (systemd.target(5)).
func (m Machine) waits(dependent string) bool {
	if dependent == dockerUnit {
		return m.requires(dependent, gateUnit)
	}
	return m.follows(dependent, gateUnit) || m.follows(dependent, dockerUnit) && m.waits(dockerUnit)
}

// follows tells whether a unit requires another one and starts after it.
func (m Machine) follows(dependent, other string) bool {
	ordered := filepath.Ext(dependent) == ".target" || m.names(dependent, other, "After")
	return ordered && m.requires(dependent, other)
}

// requires tells whether a unit requires another one, by its file, a drop-in or a link.
func (m Machine) requires(dependent, other string) bool {
	linked := slices.ContainsFunc(unitFolders(), func(folder string) bool {
		_, err := os.Lstat(filepath.Join(m.Root, folder, dependent+".requires", other))
		return err == nil
	})
	return linked || m.names(dependent, other, "Requires", "BindsTo")
}

// names tells whether one of these settings of a unit, in its file or a drop-in, names another one.
func (m Machine) names(dependent, other string, settings ...string) bool {
	files := []string{}
	for _, folder := range unitFolders() {
		dropIns, _ := filepath.Glob(filepath.Join(m.Root, folder, strings.ReplaceAll(dependent, `\`, `\\`)+".d", "*.conf"))
		for _, path := range append(dropIns, filepath.Join(m.Root, folder, dependent)) {
			hidden := slices.ContainsFunc(files, func(other string) bool { return filepath.Base(other) == filepath.Base(path) })
			if _, err := os.Lstat(path); err == nil && !hidden { // one in an earlier folder replaces it, even if it says nothing (systemd.unit(5))
				files = append(files, path)
			}
		}
	}
	return slices.ContainsFunc(files, func(path string) bool { return fileNames(path, other, settings) })
}

// fileNames reads these settings of a unit file or drop-in. Nothing is read from one that is masked.
func fileNames(path, other string, settings []string) bool {
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	options, err := unit.DeserializeOptions(file)
	return err == nil && slices.ContainsFunc(options, func(o *unit.UnitOption) bool {
		return o.Section == "Unit" && slices.Contains(settings, o.Name) && slices.Contains(strings.Fields(o.Value), other)
	})
}
