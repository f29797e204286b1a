package config

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Owner is the user and group that a store belongs to. They are numbers, because a container's users need not exist on
// the host.
type Owner struct {
	UID, GID int
}

// ParseOwner reads "uid:gid".
func ParseOwner(text string) (Owner, error) {
	if !regexp.MustCompile(`^[0-9]{1,10}:[0-9]{1,10}$`).MatchString(text) {
		return Owner{}, fmt.Errorf("%s is not a numeric user and group, UID:GID", quote(text))
	}
	uid, gid, _ := strings.Cut(text, ":")
	owner := Owner{UID: number(uid), GID: number(gid)}
	// 2^32-1 is (uid_t)-1, "no change" to chown(2).
	if const32 := 1<<32 - 1; owner.UID >= const32 || owner.GID >= const32 {
		return Owner{}, fmt.Errorf("%s is out of range; the largest id is %d", quote(text), const32-1)
	}
	return owner, nil
}

func number(digits string) int {
	n, _ := strconv.Atoi(digits) // ten digits at most
	return n
}

func (o Owner) String() string { return fmt.Sprintf("%d:%d", o.UID, o.GID) }

// MarshalYAML writes the owner as ParseOwner reads it.
func (o Owner) MarshalYAML() (any, error) { return o.String(), nil }
