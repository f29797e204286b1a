//go:build kernel

package mount

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// For xfs the folder above is content of a directory, and a store that goes back and forth would not be as it was.
func TestExchangeKeepsTimes(t *testing.T) {
	for _, kind := range []Kind{Ext4, XFS} {
		t.Run(string(kind), func(t *testing.T) {
			point := mountpoint(t)
			mountFor(t, device(t, kind), kind, point)
			one, other := mkdir(t, point, "one"), mkdir(t, mkdir(t, point, "aside"), "one")
			times := map[string]time.Time{one: time.Unix(1e9, 123456789), other: time.Unix(2e9, 987654321)}
			for path, modified := range times {
				if err := os.Chtimes(path, time.Time{}, modified); err != nil {
					t.Fatal(err)
				}
			}
			if err := Exchange(one, other); err != nil {
				t.Fatal(err)
			}
			times[one], times[other] = times[other], times[one]
			for path, modified := range times {
				if info, err := os.Stat(path); err != nil || !info.ModTime().Equal(modified) {
					t.Errorf("%s: %v instead of %v, %v", filepath.Base(filepath.Dir(path)), info.ModTime(), modified, err)
				}
			}
		})
	}
}
