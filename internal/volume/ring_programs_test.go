package volume

import (
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"

	"luksmediad/internal/command"
)

// enroll has systemd-cryptenroll do something, with the passphrase where it looks for one.
func (r *ring) enroll(args ...string) string {
	r.t.Helper()
	runner := command.Runner{Env: []string{"PASSWORD=" + ringPassphrase}}
	out, err := runner.Run(r.t.Context(), nil, nil, "systemd-cryptenroll", append(args, r.container())...)
	r.must(err)
	return string(out)
}

// requireListed wants systemd-cryptenroll to list the keyslots, as "number kind".
func (r *ring) requireListed(want ...string) {
	r.t.Helper()
	var got []string
	for line := range strings.Lines(r.enroll()) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] != "SLOT" {
			got = append(got, strings.Join(fields, " "))
		}
	}
	if !slices.Equal(got, want) {
		r.t.Errorf("systemd-cryptenroll lists %q, want %q", got, want)
	}
}

// clevis runs the real one, which reads files of its own.
func (r *ring) clevis(args ...string) string {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), "/usr/bin/clevis", args...)
	cmd.Env = append(os.Environ(), "PATH="+command.Path, "LC_ALL=C")
	out, err := cmd.Output()
	if err != nil {
		failed, _ := err.(*exec.ExitError)
		r.t.Fatalf("clevis %q: %v: %s", args, err, failed.Stderr)
	}
	return string(out)
}

func containsLine(text, line string) bool {
	return slices.Contains(slices.Collect(strings.Lines(text)), line)
}

func names[V any](object map[string]V) []string { return slices.Sorted(maps.Keys(object)) }
