package volume

import (
	"errors"
	"fmt"
)

// The classes of failure of this package, besides those of the packages below it.
var (
	// ErrNotSetUp: there is no record of a created volume.
	ErrNotSetUp = errors.New("it has not been created")
	// ErrUnfinished: a create was interrupted and its container must not be used.
	ErrUnfinished = errors.New("its creation was interrupted")
	// ErrKeysUnfinished: a change of keys was interrupted, and it takes a key to end it.
	ErrKeysUnfinished = errors.New("a change of its keys was interrupted")
	// ErrKeysChanged: something else has changed the keyslots while a change of theirs went on.
	ErrKeysChanged = errors.New("the keyslots were changed meanwhile")
	// ErrAdopting: an adopt was interrupted and has to be ended.
	ErrAdopting = errors.New("its adoption was interrupted")
	// ErrAlreadySetUp: the volume has been created before.
	ErrAlreadySetUp = errors.New("volume already set up")
	// ErrContainerMissing: nothing is at the container's path.
	ErrContainerMissing = errors.New("nothing is there")
	// ErrContainerReadOnly: the container is immutable, or what it lies on cannot be written to.
	ErrContainerReadOnly = errors.New("container is read-only")
	// ErrContainerForeign: what is at the container's path is not ours.
	ErrContainerForeign = errors.New("container foreign")
	// ErrContainerShared: something else has the container open, too.
	ErrContainerShared = errors.New("something else has it open")
	// ErrLoopForeign: the loop device that carries the container is not one that luksmediad would make.
	ErrLoopForeign = errors.New("loop device not ours")
	// ErrContainerSparse: blocks of the container are not allocated, so that a full disk below would lose data.
	ErrContainerSparse = errors.New("container sparse")
	// ErrFilesystemForeign: the filesystem or the marker in it is not the recorded one.
	ErrFilesystemForeign = errors.New("filesystem foreign")
	// ErrStoreNotEmpty: files lie in clear text where an encrypted store belongs.
	ErrStoreNotEmpty = errors.New("it is not empty")
	// ErrRootNotEmpty: files lie in clear text where the volume itself belongs.
	ErrRootNotEmpty = errors.New("it has files of its own")
	// ErrStoreGone: a store was in clear text, and nothing of it is at its path now.
	ErrStoreGone = errors.New("it had files, and has none now")
	// ErrGuarded: the path is guarded, and so the place of a store of another volume, or of one whose record is lost.
	ErrGuarded = errors.New("it is guarded")
	// ErrMountForeign: something else is mounted where the volume or a store belongs.
	ErrMountForeign = errors.New("foreign mount")
	// ErrSettings: the configuration contradicts what was created.
	ErrSettings = errors.New("configuration contradicts the volume")
	// ErrHeaderDamaged: one copy of the header is damaged, and writing to it would repair it unasked.
	ErrHeaderDamaged = errors.New("a copy of the header is damaged")
	// ErrKeyslotDamaged: a keyslot cannot be read, or differs from its copy. Nothing repairs it: there is only one.
	ErrKeyslotDamaged = errors.New("a keyslot is damaged")
	// ErrKeyslotForeign: luksmediad did not make the keyslot.
	ErrKeyslotForeign = errors.New("keyslot not ours")
	// ErrKeyslotsFull: no keyslot is free.
	ErrKeyslotsFull = errors.New("no keyslot is free")
	// ErrWeaker: a key would be replaced by one that is bound to less.
	ErrWeaker = errors.New("it would protect less")
	// ErrOnlyKeyslot: the container has no other keyslot.
	ErrOnlyKeyslot = errors.New("there is no other one")
	// ErrLastWayIn: without the keyslot nobody is proven to get in any more.
	ErrLastWayIn = errors.New("it may be the last way in")
	// ErrStoreUnclaimed: the container to adopt holds files, and nobody has said to which store they belong.
	ErrStoreUnclaimed = errors.New("it is not said which directory is the store")
	// ErrStoreDirectory: what was named cannot become the store.
	ErrStoreDirectory = errors.New("it cannot become the store")
	// ErrKeyslotMissing: the container has no such keyslot.
	ErrKeyslotMissing = errors.New("no such keyslot")
	// ErrClevis: clevis has not encrypted the key.
	ErrClevis = errors.New("clevis did not take the key")
	// ErrCipherChanged: the header names another cipher than was recorded.
	ErrCipherChanged = errors.New("another cipher than recorded")
	// ErrKeyslotUnknown: nobody is known to have filled the keyslot.
	ErrKeyslotUnknown = errors.New("unknown keyslot")
	// ErrTokenUnknown: nobody is known to have written the token.
	ErrTokenUnknown = errors.New("unknown token")
	// ErrBackupMissing: no copy of the header is kept that could be restored.
	ErrBackupMissing = errors.New("no copy of the header")
	// ErrBackupOld: the header has changed since its copy was made.
	ErrBackupOld = errors.New("copy of the header older than the header")
	// ErrShrink: the wanted size is not larger than the present one.
	ErrShrink = errors.New("volumes only grow")
	// ErrNoSize: it has to be said how large the volume is to be.
	ErrNoSize = errors.New("it is not said by how much, or to which size")
	// ErrGrowDevice: a block device is as large as it is.
	ErrGrowDevice = errors.New("a block device is enlarged by what made it, and then taken as it is")
	// ErrCoarseTimes: the volume's filesystem does not keep the times of files as exactly as the one that they come from.
	ErrCoarseTimes = errors.New("the volume keeps times of whole seconds only")
	// ErrNoManifest: what a move has copied is not known any more.
	ErrNoManifest = errors.New("its manifest is gone")
	// ErrNoExchange: two directories of the filesystem that a store lies on cannot change places, which no crash could come between.
	ErrNoExchange = errors.New("its filesystem cannot exchange directories")
	// ErrObstacles: something in a store stands against moving it.
	ErrObstacles = errors.New("it cannot be moved")
	// ErrVolumeFull: a store does not fit into the volume.
	ErrVolumeFull = errors.New("the volume is too small")
	// ErrDiskFull: a store does not fit any more where it was before it moved in.
	ErrDiskFull = errors.New("the disk outside the volume is too full")
	// ErrStoreThere: the volume has files of a store, though it is not recorded to have moved in.
	ErrStoreThere = errors.New("the volume has files of it already")
	// ErrInUse: something that luksmediad was not told to stop uses a store.
	ErrInUse = errors.New("something else uses it")
	// ErrMoveUnclear: after an interrupted move, something that has no part in it is at the path of the store.
	ErrMoveUnclear = errors.New("interrupted move unclear")
	// ErrReturning: the way back of a store was interrupted and has to be finished first.
	ErrReturning = errors.New("its way back was interrupted")
	// ErrTrial: the service of the store has not been seen well on it yet.
	ErrTrial = errors.New("its move has not come to its end")
	// ErrNoWayBack: the store has not moved in, or what it was is gone.
	ErrNoWayBack = errors.New("there is no way back")
	// ErrNothingOld: nothing of the store is left in clear text that luksmediad knows of.
	ErrNothingOld = errors.New("there is nothing to purge")
	// ErrOldMissing: the old files of a store are not where they were put, or not in the directory in which they were.
	ErrOldMissing = errors.New("it is not the one that was put there, or is gone")
	// ErrOldForeign: something has come to the old files of a store that a way back would have to replace or remove.
	ErrOldForeign = errors.New("it has come there since the move")
	// ErrUnhealthy: the service did not come up well on the new store.
	ErrUnhealthy = errors.New("its service is not well")
	// ErrLeftOver: entries that luksmediad did not move are left beside the old ones.
	ErrLeftOver = errors.New("not everything is as it was moved")
	// ErrWhichStore: it has to be said which store.
	ErrWhichStore = errors.New("it is not said which store")
	// ErrConfirmation: the caller would not go on.
	ErrConfirmation = errors.New("not confirmed")
)

// storeError is an error about one store.
type storeError struct {
	error
	store string
}

// aboutStore adds the name of the store to an error, for advice that names it.
func aboutStore(name string, err error) error {
	if err == nil {
		return nil
	}
	return &storeError{err, name}
}

func (e *storeError) Unwrap() error { return e.error }

// Store is the name of the store.
func (e *storeError) Store() string { return e.store }

// wrongf makes an error of class with a message of its own, which may wrap a cause.
func wrongf(class error, format string, args ...any) error {
	return fmt.Errorf("%w: %w", fmt.Errorf(format, args...), class)
}
