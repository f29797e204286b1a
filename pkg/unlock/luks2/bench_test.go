package luks2

import (
	"os"
	"testing"
)

func BenchmarkReadAndValidate(b *testing.B) {
	f, err := os.Open(container(b))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for b.Loop() {
		h, err := Read(f, 18<<20)
		if err != nil {
			b.Fatal(err)
		}
		if err := h.Validate(18 << 20); err != nil {
			b.Fatal(err)
		}
	}
}
