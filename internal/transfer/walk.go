package transfer

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// DefaultWorkers hide the latency of a cold disk from each other, in a process as OwnProcess makes it.
	DefaultWorkers = 24
	// batchNames is how many entries of a folder one worker does in one go.
	batchNames = 64
	// maxPending bounds the open folders, and maxNested the calls within each other when there are so many.
	maxPending, maxNested = 512, 8
	listingBytes          = 32 << 10
)

// folder is one that is being walked.
type folder struct {
	in   *folder // nil for the root
	name string
	path string
	fd   int
	stat unix.Statx_t
	// users are the listing of the folder, what is listed and not yet visited, and the folders in it not yet entered.
	users atomic.Int32

	// xattrs are the visitor's.
	xattrs xattrs
	// linked: hard links come later, and change the times of the copy.
	linked atomic.Bool
}

// name is an entry of a folder as it lists it.
type name struct {
	name  string
	inode uint64
	kind  byte // DT_*
}

// visitor is told what a walk finds, by many workers at a time.
type visitor interface {
	// enter comes before everything else of a folder, and after enter of the folder it is in.
	enter(f *folder) error
	// visit gives some of the entries of a folder that are not folders.
	visit(f *folder, names []name) error
	// leave comes when all entries of the folder have been visited, and the folders in it entered.
	leave(f *folder) error
	// failed decides about a folder that cannot be read.
	failed(path string, err error) error
}

// walk goes through a tree.
type walk struct {
	visitor  visitor
	listings sync.Pool
	failed   atomic.Bool

	mu    sync.Mutex
	more  *sync.Cond
	items []item // a stack: deep before broad, as the disk has it
	busy  int
	err   error
}

// item is a folder to enter, in another one, or entries to visit.
type item struct {
	in    *folder
	enter string
	names []name
}

// walkTree walks below root with so many workers and gives the first error.
func walkTree(ctx context.Context, t *tree, workers int, v visitor) error {
	w := &walk{visitor: v}
	w.listings.New = func() any { b := make([]byte, listingBytes); return &b }
	w.more = sync.NewCond(&w.mu)
	defer context.AfterFunc(ctx, func() { w.fail(ctx.Err()) })()
	w.items = []item{{}}
	var all sync.WaitGroup
	for range cmp.Or(workers, DefaultWorkers) {
		all.Go(func() { w.work(t) })
	}
	all.Wait()
	w.fail(ctx.Err())
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *walk) work(t *tree) {
	for {
		i, ok := w.pop()
		if !ok {
			return
		}
		w.do(t, i, 0)
		w.done()
	}
}

func (w *walk) pop() (item, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.items) == 0 && w.busy > 0 {
		w.more.Wait()
	}
	if len(w.items) == 0 {
		return item{}, false
	}
	last := w.items[len(w.items)-1]
	w.items = w.items[:len(w.items)-1]
	w.busy++
	return last, true
}

func (w *walk) done() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.busy--; w.busy == 0 {
		w.more.Broadcast()
	}
}

// offer leaves an item to whoever is free, or does it at once when there is enough to do.
func (w *walk) offer(t *tree, i item, nested int) {
	i.in.users.Add(1)
	w.mu.Lock()
	if len(w.items) < maxPending || nested >= maxNested {
		w.items = append(w.items, i)
		w.more.Signal()
		w.mu.Unlock()
		return
	}
	w.mu.Unlock()
	w.do(t, i, nested+1)
}

func (w *walk) fail(err error) {
	if err == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
		w.failed.Store(true)
	}
}

// do does an item, or only lets go of its folder when the walk has failed.
func (w *walk) do(t *tree, i item, nested int) {
	if i.in != nil {
		defer w.release(i.in)
	}
	switch {
	case w.failed.Load():
	case i.names != nil:
		w.fail(w.visitor.visit(i.in, i.names))
	default:
		w.enter(t, i.in, i.enter, nested)
	}
}

func (w *walk) enter(t *tree, in *folder, name string, nested int) {
	f, err := openFolder(t, in, name)
	if err != nil {
		w.fail(w.visitor.failed(f.path, err))
		return
	}
	f.users.Add(1)
	defer w.release(f)
	if err := w.visitor.enter(f); err != nil {
		w.fail(err)
		return
	}
	w.list(t, f, nested)
}

func openFolder(t *tree, in *folder, name string) (*folder, error) {
	f := &folder{in: in, name: name, fd: -1}
	from := t.fd
	if in != nil {
		f.path, from = join(in.path, name), in.fd
	} else {
		name = "."
	}
	if len(f.path) > maxPath {
		return f, unix.ENAMETOOLONG
	}
	var err error
	if f.fd, err = openQuietly(from, name, unix.O_RDONLY|unix.O_DIRECTORY); err != nil {
		return f, err
	}
	if f.stat, err = status(f.fd, ""); err != nil {
		closeFD(f.fd)
	}
	return f, err
}

// openQuietly opens without a new access time where it may: root and the owner may.
func openQuietly(folder int, name string, flags int) (int, error) {
	fd, err := openBelow(folder, name, flags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		return openBelow(folder, name, flags, 0)
	}
	return fd, err
}

// release ends one use of a folder, and with the last the folder.
func (w *walk) release(f *folder) {
	if f.users.Add(-1) > 0 {
		return
	}
	if !w.failed.Load() {
		w.fail(w.visitor.leave(f))
	}
	closeFD(f.fd)
}

// list reads a folder piece by piece. The last entries it visits itself.
func (w *walk) list(t *tree, f *folder, nested int) {
	var pending []name
	listing := w.listings.Get().(*[]byte)
	defer w.listings.Put(listing)
	buf := *listing
	for last := int64(0); last != endOfListing && !w.failed.Load(); {
		n, err := unix.Getdents(f.fd, buf)
		if errors.Is(err, unix.ENOENT) { // the folder was removed
			n, err = 0, nil
		}
		if err != nil {
			w.fail(w.visitor.failed(f.path, err))
			return
		}
		if n == 0 {
			break
		}
		if len(pending) > 0 {
			w.offer(t, item{in: f, names: pending}, nested)
		}
		var names []name
		names, last = parseListing(f.fd, buf[:n])
		pending = w.spread(t, f, names, nested)
	}
	if len(pending) > 0 && !w.failed.Load() {
		w.fail(w.visitor.visit(f, pending))
	}
}

// spread offers the folders and all batches of entries but the last. In the order of their inodes they lie on the disk.
func (w *walk) spread(t *tree, f *folder, names []name, nested int) []name {
	slices.SortFunc(names, func(a, b name) int { return cmp.Compare(a.inode, b.inode) })
	entries := make([]name, 0, len(names))
	for _, n := range slices.Backward(names) {
		if n.kind == unix.DT_DIR {
			w.offer(t, item{in: f, enter: n.name}, nested)
		}
	}
	for _, n := range names {
		if n.kind != unix.DT_DIR {
			entries = append(entries, n)
		}
	}
	for len(entries) > batchNames {
		w.offer(t, item{in: f, names: entries[:batchNames:batchNames]}, nested)
		entries = entries[batchNames:]
	}
	return entries
}

// endOfListing is the offset behind the last entry of ext4, EXT4_HTREE_EOF_64BIT of fs/ext4/ext4.h, which no other has. Other filesystems are
// asked once more.
const endOfListing = math.MaxInt64

// parseListing reads what getdents64(2) gives: inode, offset of the next entry, length, type, name. It gives the last offset, too.
func parseListing(folder int, buf []byte) (names []name, last int64) {
	for len(buf) > 19 {
		last = int64(binary.NativeEndian.Uint64(buf[8:]))
		length := binary.NativeEndian.Uint16(buf[16:])
		n := name{name: unix.ByteSliceToString(buf[19:length]), inode: binary.NativeEndian.Uint64(buf), kind: buf[18]}
		buf = buf[length:]
		if n.name == "." || n.name == ".." {
			continue
		}
		if n.kind == unix.DT_UNKNOWN {
			n.kind = kindByStat(folder, n.name)
		}
		names = append(names, n)
	}
	return names, last
}

// kindByStat is for filesystems that do not list types; what has gone is for the visitor to find.
func kindByStat(folder int, name string) byte {
	stat, err := status(folder, name)
	if err != nil {
		return unix.DT_REG
	}
	return byte(stat.Mode >> 12) // IFTODT, dirent.h
}
