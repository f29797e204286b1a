// Package tpm2 seals keys to a TPM 2.0 and unseals them, in the token format
// that systemd-cryptenroll writes into LUKS2 headers.
//
// Secrets, PINs among them, cross the bus only in sessions whose key is salted
// to the storage root key (TPM 2.0 Library, Part 1, "Session-based encryption"),
// and the Name of that key is compared with the one recorded in the token before
// it is used, so that neither a listener nor a TPM put in between learns them.
// Tokens of systemd up to 253 record no such Name: those are safe from listeners
// only.
//
// An error of this package wraps one of its classes (see [ErrAbsent] and its
// neighbours), or the error of a context that ended.
package tpm2
