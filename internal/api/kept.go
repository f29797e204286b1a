package api

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Kept are the descriptors of sockets that outlive an execve(2) with what waits in their queues: whoever connects meanwhile is answered
// by the program that this process becomes. They are closed by an execve(2) until [Kept.Pass] is called.
type Kept struct {
	// Handed are those of the service manager, as it has handed them over.
	Handed []int `json:"handed,omitempty"`
	// Control and TCP are those that this process has made itself, 0 where there is none.
	Control int `json:"control,omitempty"`
	TCP     int `json:"tcp,omitempty"`
}

// Keep keeps what is listened on. Closing the listeners, which is left to the caller, then leaves the sockets as they are. What cannot be
// kept is left out, and is an error too.
func (a Activated) Keep(control, tcp net.Listener) (Kept, error) {
	kept := Kept{Handed: a.numbers}
	var faults [2]error
	if own, ok := control.(*controlListener); ok {
		if kept.Control, faults[0] = duplicate(own.UnixListener); faults[0] == nil {
			own.once.Do(func() {}) // the file stays
		}
	}
	if own, ok := tcp.(*net.TCPListener); ok && !a.handedTCP {
		kept.TCP, faults[1] = duplicate(own)
	}
	return kept, errors.Join(faults[:]...)
}

// socket is a listener of the kernel.
type socket interface {
	net.Listener
	syscall.Conn
}

func duplicate(listener socket) (fd int, err error) {
	raw, err := listener.SyscallConn()
	if err == nil {
		failed := raw.Control(func(open uintptr) { fd, err = unix.FcntlInt(open, unix.F_DUPFD_CLOEXEC, 0) })
		err = errors.Join(err, failed)
	}
	if err != nil {
		return 0, fmt.Errorf("cannot keep the socket at %s: %w", listener.Addr(), err)
	}
	return fd, nil
}

// descriptors are all of them.
func (k Kept) descriptors() []int {
	all := append([]int{}, k.Handed...)
	for _, own := range []int{k.Control, k.TCP} {
		if own != 0 {
			all = append(all, own)
		}
	}
	return all
}

// Pass makes them outlive an execve(2), that of a child too: the caller begins none meanwhile (syscall.ForkLock).
func (k Kept) Pass() error {
	for _, fd := range k.descriptors() {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("cannot keep socket %d: %w", fd, err)
		}
	}
	return nil
}

// TakeKept is [TakeActivated] in the program that the process has become. Of the sockets that the process before has made itself, that
// for TCP is taken only if it still is the one to listen on, at address.
func TakeKept(kept Kept, authenticated bool, address string) (Activated, error) {
	for _, fd := range kept.descriptors() {
		unix.CloseOnExec(fd)
	}
	var handed []*os.File
	for _, fd := range kept.Handed {
		handed = append(handed, os.NewFile(uintptr(fd), fmt.Sprintf("socket %d", fd)))
	}
	taken, err := takeHanded(handed, authenticated)
	if err != nil {
		return taken, err
	}
	if own, ok := listenerOf(kept.Control).(*net.UnixListener); ok {
		taken.Control = takeControl(taken.Control, own)
	}
	if own := listenerOf(kept.TCP); own != nil {
		if taken.TCP != nil || own.Addr().String() != address {
			own.Close()
		} else if err := taken.takeTCP(own, authenticated); err != nil {
			taken.Refused = append(taken.Refused, err)
		}
	}
	return taken, nil
}

// listenerOf is nil where there is none.
func listenerOf(fd int) net.Listener {
	if fd == 0 {
		return nil
	}
	file := os.NewFile(uintptr(fd), fmt.Sprintf("socket %d", fd))
	defer file.Close()
	listener, err := net.FileListener(file)
	if err != nil {
		return nil
	}
	return listener
}

// takeControl takes a socket that the process before has made, if its file is still there and nobody has handed over another.
func takeControl(handed net.Listener, own *net.UnixListener) net.Listener {
	path := own.Addr().String()
	made, err := os.Lstat(path)
	if handed != nil || err != nil || made.Mode().Type() != fs.ModeSocket {
		own.Close()
		return handed
	}
	return &controlListener{UnixListener: own, path: path, made: made}
}
