package synapse

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// maxToken bounds the token file, in bytes.
const maxToken = 4 << 10

var (
	errTokenFile   = errors.New("it does not hold one line of visible characters")
	errTokenPublic = errors.New("every user of this machine can read or write it")
)

// readToken reads a token and drops the newline that editors put at the end.
func readToken(name string) (string, error) {
	file, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", fmt.Errorf("cannot read the token: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", fmt.Errorf("cannot read the token: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return "", fmt.Errorf("cannot use the token in %s: %w", name, errTokenPublic)
	}
	contents, err := io.ReadAll(io.LimitReader(file, maxToken+1))
	if err != nil {
		return "", fmt.Errorf("cannot read the token: %w", err)
	}
	token := strings.TrimSpace(string(contents))
	invisible := func(r rune) bool { return r <= ' ' || r > '~' }
	if token == "" || len(contents) > maxToken || strings.ContainsFunc(token, invisible) {
		return "", fmt.Errorf("cannot use the token in %s: %w", name, errTokenFile)
	}
	return token, nil
}
