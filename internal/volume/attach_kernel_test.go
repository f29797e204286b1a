//go:build kernel

package volume

import (
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"
)

// A loop device that is about to vanish, because whoever looks at it, such as udev, is the last to have it open, is no obstacle.
func TestAttachWhatVanishes(t *testing.T) {
	s := newCreated(t)
	opened, err := openContainer(s.config.Volume.Container, os.O_RDWR)
	s.must(err)
	defer opened.Close()
	var looking sync.WaitGroup
	for range 300 {
		last, _, err := opened.attach(t.Context(), 4096)
		s.must(err)
		looking.Go(func() {
			time.Sleep(time.Duration(rand.IntN(400)) * time.Microsecond)
			s.must(last.release())
		})
		again, _, err := opened.attach(t.Context(), 4096)
		looking.Wait()
		if err != nil {
			t.Fatal(err)
		}
		s.must(again.release())
	}
}
