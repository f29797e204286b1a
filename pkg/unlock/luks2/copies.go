package luks2

import "io"

// Copy is one of the two copies of a header.
type Copy struct {
	Part       Part  // Primary or Secondary
	Offset     int64 // in bytes, where it begins
	SequenceID uint64
}

// Copies lists the copies that are intact, each by itself: one of them may be
// stale. It is for showing them; what is opened is what [Read] returns.
func Copies(r io.ReaderAt, size int64) []Copy {
	var copies []Copy
	primary, _ := readCopy(r, size, 0)
	if primary != nil {
		copies = append(copies, Copy{Part: Primary, SequenceID: primary.sequence()})
	}
	if secondary, _ := readSecondary(r, size, primary); secondary != nil {
		copies = append(copies, Copy{Part: Secondary, Offset: secondary.size(), SequenceID: secondary.sequence()})
	}
	return copies
}
