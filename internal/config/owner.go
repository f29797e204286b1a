package config

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// Owner is the user and group that a store belongs to. They are numbers, because a container's users need not exist on
// the host.
type Owner struct {
	UID, GID int
}

// maxID is below (uid_t)-1, which is "no change" to chown(2).
const maxID = 1<<32 - 2

var ownerForm = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9]{1,10}:[0-9]{1,10}$`) })

// ParseOwner reads "uid:gid".
func ParseOwner(text string) (Owner, error) {
	if !ownerForm().MatchString(text) {
		return Owner{}, fmt.Errorf("%s is not a numeric user and group, UID:GID", quote(text))
	}
	uid, gid, _ := strings.Cut(text, ":")
	owner := Owner{UID: number(uid), GID: number(gid)}
	if owner.UID > maxID || owner.GID > maxID {
		return Owner{}, fmt.Errorf("%s is out of range; the largest id is %d", quote(text), maxID)
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
