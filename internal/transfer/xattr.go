package transfer

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// xattr is an extended attribute. ACLs are some too: system.posix_acl_access and system.posix_acl_default, acl(5), xattr(7).
type xattr struct {
	name  string
	value []byte
}

// xattrs are sorted by name.
type xattrs []xattr

// digest is zero for none.
func (x xattrs) digest() Digest {
	if len(x) == 0 {
		return Digest{}
	}
	var b []byte
	for _, a := range x {
		b = appendBytes(appendBytes(b, a.name), string(a.value))
	}
	return sha256.Sum256(binary.AppendUvarint(b, uint64(len(x))))
}

func (x xattrs) has(name string) bool {
	return slices.ContainsFunc(x, func(a xattr) bool { return a.name == name })
}

// holder is what has attributes: a descriptor, or a symbolic link in a folder.
type holder struct {
	fd   int
	link string
}

// path leads to a symbolic link through its folder's descriptor; no call takes a descriptor and a name.
func (h holder) path() string { return "/proc/self/fd/" + strconv.Itoa(h.fd) + "/" + h.link }

func (h holder) list(buf []byte) (int, error) {
	if h.link != "" {
		return unix.Llistxattr(h.path(), buf)
	}
	return unix.Flistxattr(h.fd, buf)
}

func (h holder) get(name string, buf []byte) (int, error) {
	if h.link != "" {
		return unix.Lgetxattr(h.path(), name, buf)
	}
	return unix.Fgetxattr(h.fd, name, buf)
}

func (h holder) set(a xattr) error {
	if h.link != "" {
		return unix.Lsetxattr(h.path(), a.name, a.value, 0)
	}
	return unix.Fsetxattr(h.fd, a.name, a.value, 0)
}

func (h holder) remove(name string) error {
	if h.link != "" {
		return unix.Lremovexattr(h.path(), name)
	}
	return unix.Fremovexattr(h.fd, name)
}

// names lists the attributes, sorted. A filesystem without any has none.
func (h holder) names() ([]string, error) {
	var small [256]byte
	list, err := grow(small[:], h.list)
	if err != nil || len(list) == 0 {
		if errors.Is(err, unix.EOPNOTSUPP) {
			err = nil
		}
		return nil, err
	}
	names := strings.Split(strings.TrimSuffix(string(list), "\x00"), "\x00")
	slices.Sort(names)
	return slices.DeleteFunc(names, isShadow), nil
}

// isShadow finds the names by which xfs shows root an ACL for a second time, SGI_ACL_FILE and SGI_ACL_DEFAULT of xfs_format.h.
func isShadow(name string) bool {
	return name == "trusted.SGI_ACL_FILE" || name == "trusted.SGI_ACL_DEFAULT"
}

// read reads all attributes. One that vanishes meanwhile was never there.
func (h holder) read() (xattrs, error) {
	names, err := h.names()
	if err != nil || len(names) == 0 {
		return nil, err
	}
	all := make(xattrs, 0, len(names))
	for _, name := range names {
		var small [256]byte
		value, err := grow(small[:], func(buf []byte) (int, error) { return h.get(name, buf) })
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, xattr{name, slices.Clone(value)})
	}
	return all, nil
}

// write makes the attributes those of x. Of what was just made only want is looked at.
func (h holder) write(x xattrs, made bool) error {
	if !made {
		names, err := h.names()
		if err != nil {
			return err
		}
		for _, name := range names {
			if x.has(name) {
				continue
			}
			if err := h.remove(name); err != nil && !errors.Is(err, unix.ENODATA) {
				return err
			}
		}
	}
	for _, a := range x {
		if err := h.set(a); err != nil {
			return err
		}
	}
	return nil
}

// maxXattr is the longest list and the longest value, XATTR_LIST_MAX and XATTR_SIZE_MAX of linux/limits.h.
const maxXattr = 64 << 10

func grow(small []byte, read func(buf []byte) (int, error)) ([]byte, error) {
	n, err := read(small)
	if errors.Is(err, unix.ERANGE) {
		small = make([]byte, maxXattr)
		n, err = read(small)
	}
	return small[:max(n, 0)], err
}
