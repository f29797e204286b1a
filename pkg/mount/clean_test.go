package mount

import (
	"testing"
	"time"
)

// e2fsck -p says "clean" for exactly these, without looking further.
func TestExt4Clean(t *testing.T) {
	for name, test := range map[string]struct {
		changes []string // requests of debugfs(8)
		clean   bool
	}{
		"fresh":            {nil, true},
		"errors recorded":  {[]string{"ssv state 2"}, false},
		"not unmounted":    {[]string{"ssv state 0"}, false},
		"journal to run":   {[]string{"feature needs_recovery"}, false},
		"orphans":          {[]string{"ssv last_orphan 12"}, false},
		"error count":      {[]string{"ssv error_count 1"}, false},
		"mounts used up":   {[]string{"ssv max_mnt_count 1", "ssv mnt_count 1"}, false},
		"mounts left":      {[]string{"ssv max_mnt_count 3", "ssv mnt_count 2"}, true},
		"check is overdue": {[]string{"ssv checkinterval 60", "ssv lastcheck 200001010000"}, false},
		"check is not due": {[]string{"ssv checkinterval 4000000000"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			image := ext4Image(t)
			debugfs(t, image, test.changes...)
			clean, err := ext4Clean(image, time.Now())
			if err != nil || clean != test.clean {
				t.Errorf("clean is %t, not %t (%v)", clean, test.clean, err)
			}
		})
	}
}
