// Package transfer copies a store from one filesystem to another and proves that the copy is right.
//
// A move is: Survey, that nothing stands against it; Copy, while the service runs; Verify of that copy, still while it runs; stop the
// service; Delta; Verify once more, which reads only what Delta has written; Unchanged, that the source is still what was copied.
// An interrupted move begins again at Copy, which adopts what is right. The way back is CarryBack, the end of the old copy Remove.
//
// Trees are walked by descriptor: nothing below the root is ever reached through a symbolic link or into another mount, whoever
// renames what meanwhile (openat2(2)). A name is bytes. Memory does not grow with the number of entries: what has to be sorted is
// sorted on disk, in the folder State.
//
// What is not kept: access times beyond the moment of copying, birth times, and flags such as immutable (chattr(1)), which Survey
// reports. A file that is only written through a shared mapping may change after Delta has read it without anybody noticing, so
// nothing may have one when the service has stopped.
package transfer
