package transfer

import (
	"fmt"
	"os"
	"strings"
)

// currentUmask reads it without setting it, proc_pid_status(5). Where it cannot be read, no bit of a mode is taken for granted.
func currentUmask() uint32 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0o777
	}
	for line := range strings.Lines(string(status)) {
		var umask uint32
		if n, _ := fmt.Sscanf(line, "Umask: %o", &umask); n == 1 {
			return umask
		}
	}
	return 0o777
}
