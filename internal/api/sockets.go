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

// Sockets are descriptors of sockets that outlive an execve(2) with what waits in their queues: whoever connects meanwhile is answered
// by the program that this process becomes. They are closed by an execve(2) until [Sockets.Pass] is called.
type Sockets struct {
	// Handed are those of the service manager, as it has handed them over.
	Handed []int `json:"handed,omitempty"`
	// Control and TCP are those that this process has made itself, 0 where there is none.
	Control int `json:"control,omitempty"`
	TCP     int `json:"tcp,omitempty"`
	// File is that of Control, Address what TCP was to listen on, in the words of the configuration.
	File    fileID `json:"file"`
	Address string `json:"address,omitempty"`
}

// fileID tells one file from all others that are there.
type fileID struct {
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
}

func idOf(info fs.FileInfo) fileID {
	stat := info.Sys().(*syscall.Stat_t)
	return fileID{stat.Dev, stat.Ino}
}

// Keep keeps what is listened on, on TCP at address. Closing the listeners, which is left to the caller, then leaves the sockets as they
// are. What cannot be kept is left out, and is an error too.
func (a Activated) Keep(control, tcp net.Listener, address string) (Sockets, error) {
	kept := Sockets{Address: address}
	var faults []error
	for _, file := range a.handed {
		fd, err := duplicate(file)
		if err == nil {
			kept.Handed = append(kept.Handed, fd)
		}
		faults = append(faults, err)
	}
	if own, ok := control.(*controlListener); ok {
		fd, err := duplicate(own.UnixListener)
		if err == nil {
			kept.Control, kept.File = fd, idOf(own.made)
			own.once.Do(func() {}) // the file stays
		}
		faults = append(faults, err)
	}
	if own, ok := tcp.(*net.TCPListener); ok && !a.HandedTCP {
		fd, err := duplicate(own)
		kept.TCP = fd
		faults = append(faults, err)
	}
	return kept, errors.Join(faults...)
}

// duplicate returns a descriptor that nothing else closes.
func duplicate(socket syscall.Conn) (fd int, err error) {
	raw, err := socket.SyscallConn()
	if err == nil {
		failed := raw.Control(func(open uintptr) { fd, err = unix.FcntlInt(open, unix.F_DUPFD_CLOEXEC, 0) })
		err = errors.Join(err, failed)
	}
	if err != nil {
		return 0, fmt.Errorf("cannot keep a socket: %w", err)
	}
	return fd, nil
}

// descriptors are all of them.
func (s Sockets) descriptors() []int {
	all := append([]int{}, s.Handed...)
	for _, own := range []int{s.Control, s.TCP} {
		if own != 0 {
			all = append(all, own)
		}
	}
	return all
}

// Pass makes them outlive an execve(2), that of a child too: the caller begins none meanwhile (syscall.ForkLock).
func (s Sockets) Pass() error {
	for _, fd := range s.descriptors() {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("cannot keep socket %d: %w", fd, err)
		}
	}
	return nil
}

// TakeKept is [TakeActivated] in the program that the process has become. Of the sockets that the process before has made itself, that
// for TCP is taken only if it still is the one to listen on, at address.
func TakeKept(kept Sockets, authenticated bool, address string) (Activated, error) {
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
		taken.Control = takeControl(taken.Control, own, kept.File)
	}
	if own := listenerOf(kept.TCP); own != nil {
		if taken.TCP != nil || kept.Address != address {
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
func takeControl(handed net.Listener, own *net.UnixListener, file fileID) net.Listener {
	path := own.Addr().String()
	made, err := os.Lstat(path)
	if handed != nil || err != nil || idOf(made) != file {
		own.Close()
		return handed
	}
	return &controlListener{UnixListener: own, path: path, made: made}
}
