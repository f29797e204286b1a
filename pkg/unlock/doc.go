// Package unlock turns a locked LUKS2 container into an open mapping.
//
// The way through it is one-directional: a validated header ([luks2.Header]) and an ordered list of key sources
// ([Source]) go into an [Opener], a [Mapping] comes out. Every source offers keys for keyslots it names; each offer
// is tried on exactly those keyslots, so that an expensive keyslot in front never costs time. cryptsetup(8) does the
// cryptography and is given the very header bytes that were validated; the volume key never enters this process.
package unlock
