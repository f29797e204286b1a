package command

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Path is where programs are looked for, and the PATH that they see. The caller's own PATH has no influence.
const Path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// lookup returns the absolute path of a program. It differs from exec.LookPath in that it does not read the
// environment and never resolves a path relative to the working directory.
func lookup(name string) (string, error) {
	if filepath.IsAbs(name) {
		return name, executable(name)
	}
	if name == "" || strings.ContainsRune(name, filepath.Separator) {
		return "", fmt.Errorf("%w: %q is neither a bare name nor an absolute path", ErrNotFound, name)
	}
	for _, dir := range filepath.SplitList(Path) {
		if path := filepath.Join(dir, name); executable(path) == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w in %s", ErrNotFound, Path)
}

func executable(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
		return fmt.Errorf("%w: %s is not an executable file", ErrNotFound, path)
	}
	return nil
}
