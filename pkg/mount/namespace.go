package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// InInitialNamespace returns ErrPrivateNamespace if this process does not share the mount namespace of process 1, as in a unit
// with PrivateTmp= or under unshare -m: what it mounts is seen by nobody else.
func InInitialNamespace() error {
	same, err := sameNamespaceLink()
	if errors.Is(err, fs.ErrPermission) {
		same, err = sameRootMount()
	}
	if err != nil {
		return fmt.Errorf("cannot compare mount namespaces with process 1: %w", err)
	}
	if !same {
		return fmt.Errorf("%w: mounts made here do not reach the host", ErrPrivateNamespace)
	}
	return nil
}

func sameNamespaceLink() (bool, error) {
	own, err := os.Stat("/proc/self/ns/mnt")
	if err != nil {
		return false, err
	}
	first, err := os.Stat("/proc/1/ns/mnt")
	if err != nil {
		return false, err
	}
	return os.SameFile(own, first), nil
}

// sameRootMount does without CAP_SYS_PTRACE, which the namespace links of a process with more capabilities need (proc(5)):
// a new mount namespace is a copy in which every mount has a new id.
func sameRootMount() (bool, error) {
	own, err := rootMount("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	first, err := rootMount("/proc/1/mountinfo")
	return own == first, err
}

func rootMount(path string) (int, error) {
	table, err := readTableFile(path)
	if err != nil {
		return 0, err
	}
	root := table.At("/")
	if root == nil {
		return 0, fmt.Errorf("%s has no root mount", path)
	}
	return root.ID, nil
}
