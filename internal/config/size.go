package config

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// Size is a number of bytes, written with a binary unit.
type Size int64

// The units of sizes (IEC 80000-13).
const (
	MiB Size = 1 << 20
	GiB Size = 1 << 30
	TiB Size = 1 << 40
)

type unit struct {
	name string
	size Size
}

// units are the known ones, largest first. There is nothing below MiB, so that every size is a whole number of sectors
// and of filesystem blocks.
func units() []unit { return []unit{{"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}} }

var unitForm = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z]+$`) })

// ParseSize reads a whole number with a unit: MiB, GiB or TiB. Decimal units are refused rather than taken for binary
// ones.
func ParseSize(text string) (Size, error) {
	digits := text[:len(text)-len(strings.TrimLeft(text, "0123456789"))]
	number, err := strconv.ParseInt(digits, 10, 64)
	suffix := strings.TrimPrefix(text, digits)
	switch {
	case suffix == "" && err == nil:
		return 0, fmt.Errorf("%s has no unit", quote(text))
	case err != nil, !unitForm().MatchString(suffix):
		return 0, fmt.Errorf("%s is not a whole number with a unit", quote(text))
	}
	for _, u := range units() {
		if u.name != suffix {
			continue
		}
		if number > math.MaxInt64/int64(u.size) {
			return 0, fmt.Errorf("%s is too large", quote(text))
		}
		return Size(number) * u.size, nil
	}
	return 0, fmt.Errorf("%s has an unknown unit; known are MiB, GiB and TiB", quote(text))
}

// Bytes is the size as a plain number.
func (s Size) Bytes() int64 { return int64(s) }

// String writes the size with the largest unit that divides it.
func (s Size) String() string {
	for _, u := range units() {
		if s != 0 && s%u.size == 0 {
			return fmt.Sprintf("%d%s", s/u.size, u.name)
		}
	}
	return fmt.Sprintf("%dB", int64(s))
}

// MarshalYAML writes the size as ParseSize reads it.
func (s Size) MarshalYAML() (any, error) { return s.String(), nil }
