package secret

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// memory is one mapping that holds one key. It has no slice, because fmt
// follows one pointer and prints what is behind it when a verb does not suit
// (printing &{…} after %!t): a bare pointer to the bytes is where it stops.
type memory struct {
	start  *byte // nil once destroyed
	size   int   // bytes of the key
	mapped int   // bytes of the mapping, whole pages
}

func (m *memory) bytes() []byte   { return unsafe.Slice(m.start, m.size) }
func (m *memory) mapping() []byte { return unsafe.Slice(m.start, m.mapped) }

// allocate maps size zeroed bytes of memfd_secret(2) memory, which even the
// kernel cannot read by mistake, or else of ordinary locked memory.
func allocate(size int) (*memory, error) {
	page := os.Getpagesize()
	length := (size + page - 1) / page * page
	mapping, err := mapSecret(length)
	// ENOSYS: no CONFIG_SECRETMEM, or Linux < 6.5 without secretmem.enable=y.
	// EPERM: a seccomp filter that does not know the call.
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		mapping, err = mapLocked(length)
	}
	if err != nil {
		return nil, err
	}
	return &memory{start: unsafe.SliceData(mapping), size: size, mapped: length}, nil
}

// mapSecret maps memfd_secret memory: locked and never dumped by its nature
// (mm/secretmem.c sets VM_LOCKED and VM_DONTDUMP).
func mapSecret(length int) ([]byte, error) {
	fd, err := unix.MemfdSecret(unix.O_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot create secret memory: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(length)); err != nil {
		return nil, fmt.Errorf("cannot size secret memory: %w", err)
	}
	mapping, err := unix.Mmap(fd, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("%w: cannot map %d bytes of secret memory: %w", ErrNoMemory, length, err)
	}
	return mapping, nil
}

// mapLocked maps anonymous memory which is kept out of swap, core dumps and
// forked children. It is a mapping of its own because madvise(2) works on
// whole pages only, and the Go heap gives none.
func mapLocked(length int) ([]byte, error) {
	mapping, err := unix.Mmap(-1, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("%w: cannot map %d bytes: %w", ErrNoMemory, length, err)
	}
	if err := protect(mapping); err != nil {
		unix.Munmap(mapping)
		return nil, err
	}
	return mapping, nil
}

func protect(mapping []byte) error {
	if err := unix.Mlock(mapping); err != nil {
		return fmt.Errorf("%w: cannot lock %d bytes: %w", ErrNoMemory, len(mapping), err)
	}
	for _, advice := range []int{unix.MADV_DONTDUMP, unix.MADV_WIPEONFORK} {
		if err := unix.Madvise(mapping, advice); err != nil {
			return fmt.Errorf("cannot protect memory (madvise %d): %w", advice, err)
		}
	}
	return nil
}

// truncate keeps the first n bytes and clears the rest.
func (m *memory) truncate(n int) {
	clear(m.bytes()[n:])
	m.size = n
}

// wipe overwrites the whole mapping. KeepAlive keeps the compiler from
// dropping stores into memory that is about to go away.
func (m *memory) wipe() {
	clear(m.mapping())
	runtime.KeepAlive(m.start)
}

// destroy wipes and unmaps. munmap(2) of a mapping made by mmap(2) has no
// failure that could be handled; the bytes are gone either way.
func (m *memory) destroy() {
	if m.start == nil {
		return
	}
	m.wipe()
	unix.Munmap(m.mapping())
	m.start, m.size, m.mapped = nil, 0, 0
}
