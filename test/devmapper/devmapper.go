// Package devmapper changes device-mapper devices under whoever uses them. It is for tests, in a machine of their own.
package devmapper

import (
	"context"
	"os/exec"
	"testing"
)

// Swap replaces the table of a device, as xfstests does (common/dmerror): what is still in memory is not written out before.
func Swap(t testing.TB, name, table string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context()) // it is for cleaning up, too
	for _, args := range [][]string{
		{"suspend", "--noflush", "--nolockfs", name},
		{"load", name, "--table", table},
		{"resume", name},
	} {
		if output, err := exec.CommandContext(ctx, "dmsetup", args...).CombinedOutput(); err != nil {
			t.Fatalf("dmsetup %q: %v\n%s", args, err, output)
		}
	}
}
