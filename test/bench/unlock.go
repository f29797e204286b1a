package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/google/uuid"

	"luksmediad/internal/command"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
)

const (
	sectorBytes    = 4096
	containerBytes = 64 << 20
	benchMapping   = "luksmediad-unlock"
)

// vault is a container that both sides open, and how.
type vault struct {
	path, keyFile, passphrase string
	cryptsetup                unlock.Cryptsetup
	key                       *secret.Key
}

// newVault makes a container as create does: keyslot 0 takes a recovery key and has its token, keyslot 1 takes the key file.
func newVault(dir string, pbkdf unlock.PBKDF) (*vault, error) {
	v := &vault{
		path: filepath.Join(dir, "container"), keyFile: filepath.Join(dir, "key"), passphrase: "correct horse battery staple",
		cryptsetup: unlock.Cryptsetup{Runner: command.Runner{}},
	}
	if err := v.allocate(); err != nil {
		return nil, err
	}
	var err error
	if v.key, err = secret.Random(32); err != nil {
		return nil, err
	}
	if err := os.WriteFile(v.keyFile, v.key.Bytes(), 0o400); err != nil {
		return nil, err
	}
	return v, v.format(pbkdf)
}

// format adds the keyslots in the order of create: cryptsetup tries them in the order of the header's JSON.
func (v *vault) format(pbkdf unlock.PBKDF) error {
	ctx := context.Background()
	const first = 31
	passphrase, err := secret.From([]byte(v.passphrase))
	if err != nil {
		return err
	}
	defer passphrase.Wipe()
	options := unlock.FormatOptions{UUID: uuid.NewString(), Label: "bench", Keyslot: first, SectorBytes: sectorBytes}
	if err := v.cryptsetup.Format(ctx, v.path, v.key, options); err != nil {
		return err
	}
	way := &unlock.Way{Keyslots: []int{first}, Key: v.key}
	if err := v.cryptsetup.AddKey(ctx, v.path, way, passphrase, 0, pbkdf); err != nil {
		return err
	}
	if err := v.markRecovery(ctx, 0); err != nil {
		return err
	}
	if err := v.cryptsetup.AddKey(ctx, v.path, way, v.key, 1, unlock.MinimalPBKDF); err != nil {
		return err
	}
	header, err := v.header()
	if err != nil {
		return err
	}
	return v.cryptsetup.RemoveKeyslot(ctx, v.path, header, first, v.way())
}

// way is that of the key file.
func (v *vault) way() *unlock.Way { return &unlock.Way{Keyslots: []int{1}, Key: v.key} }

func (v *vault) header() (*luks2.Header, error) {
	file, err := os.Open(v.path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	header, err := luks2.Read(file, containerBytes)
	if err != nil {
		return nil, err
	}
	return header, header.Validate(containerBytes)
}

func (v *vault) allocate() error {
	file, err := os.OpenFile(v.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(mount.Allocate(context.Background(), file, containerBytes, func(int64) {}), file.Close())
}

// enrol has systemd-cryptenroll add a keyslot for the TPM, bound to PCRs such as "7".
func (v *vault) enrol(tpm, pcrs string) error {
	cmd := exec.Command("systemd-cryptenroll", "--tpm2-device="+tpm, "--tpm2-pcrs="+pcrs, v.path)
	cmd.Env = append(os.Environ(), "PASSWORD="+v.passphrase)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot enrol the TPM: %w: %s", err, output)
	}
	return nil
}

// markRecovery adds the token of a recovery key.
func (v *vault) markRecovery(ctx context.Context, keyslot int) error {
	token, err := json.Marshal(map[string]any{"type": unlock.TokenRecovery, "keyslots": []string{strconv.Itoa(keyslot)}})
	if err != nil {
		return err
	}
	return v.cryptsetup.ImportToken(ctx, v.path, token)
}

// crowd fills the header up to so many keyslots, the first of the new ones with a token of a recovery key.
func (v *vault) crowd(keyslots int) error {
	ctx := context.Background()
	for slot := 2; slot < keyslots; slot++ {
		recovery, err := secret.RecoveryKey()
		if err != nil {
			return err
		}
		if err := v.cryptsetup.AddKey(ctx, v.path, v.way(), recovery, slot, unlock.MinimalPBKDF); err != nil {
			return err
		}
		if slot > 2 {
			continue
		}
		if err := v.markRecovery(ctx, slot); err != nil {
			return err
		}
	}
	return nil
}

// measureUnlock measures from container to mapping, both sides on one image with one TPM.
func measureUnlock(runs int) ([]figure, error) {
	dir, err := os.MkdirTemp("/scratch", "unlock")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var figures []figure
	for _, part := range []func(string, int) (figure, error){unlockKeyFile, unlockTPM, unlockCrowded, unlockUnnamed} {
		folder, err := os.MkdirTemp(dir, "vault")
		if err != nil {
			return nil, err
		}
		f, err := part(folder, runs)
		if err != nil {
			return nil, err
		}
		figures = append(figures, f)
	}
	return figures, nil
}

func unlockKeyFile(dir string, runs int) (figure, error) {
	f := figure{name: "container to mapping with a key file, beside systemd-cryptsetup attach", unit: "ms"}
	v, err := newVault(dir, unlock.MinimalPBKDF)
	if err != nil {
		return f, err
	}
	return f, turns{restore: detach}.compare(&f, runs, v.open(v.keyFile), v.attach(v.keyFile, "luks,headless=1"))
}

func unlockTPM(dir string, runs int) (figure, error) {
	return unlockEnrolled(dir, runs, "container to mapping with a TPM, beside systemd-cryptsetup attach", 2, "7")
}

func unlockCrowded(dir string, runs int) (figure, error) {
	return unlockEnrolled(dir, runs, "the same with 8 keyslots and 4 tokens", 6, "7", "")
}

// unlockEnrolled fills the header up to so many keyslots and then adds one for each selection of PCRs.
func unlockEnrolled(dir string, runs int, what string, keyslots int, selections ...string) (figure, error) {
	f := figure{name: what, unit: "ms"}
	tpm, end := newTPM()
	defer end()
	v, err := newVault(dir, unlock.MinimalPBKDF)
	if err == nil {
		err = v.crowd(keyslots)
	}
	// systemd 252 leaves its sessions in a TPM without resource manager; a boot begins with none.
	reboot := func() error {
		tpm.Restart()
		tpm.Extend(7, "firmware")
		return nil
	}
	for _, pcrs := range selections {
		if err == nil {
			err = errors.Join(reboot(), v.enrol(tpm.TCTI(), pcrs))
		}
	}
	if err != nil {
		return f, err
	}
	return f, turns{prepare: reboot, restore: detach}.compare(&f, runs,
		v.open(tpm.TCTI()), v.attach("-", "luks,headless=1,tpm2-device="+tpm.TCTI()))
}

// unlockUnnamed is beside what a crypttab or a script does that does not name the keyslot.
func unlockUnnamed(dir string, runs int) (figure, error) {
	f := figure{name: "container to mapping with a key file behind an Argon2id keyslot, beside cryptsetup open without --key-slot", unit: "ms"}
	v, err := newVault(dir, unlock.HumanPBKDF)
	if err != nil {
		return f, err
	}
	return f, turns{restore: detach}.compare(&f, runs, v.open(v.keyFile), func() error {
		return run("cryptsetup", "open", "--type", "luks2", "--key-file", v.keyFile, v.path, benchMapping)
	})
}

// open does it as the daemon does, which runs by then: its start is in the figures from start to READY=1.
func (v *vault) open(key string) func() error {
	return func() error { return open(v.path, benchMapping, key) }
}

func (v *vault) attach(key, options string) func() error {
	return func() error {
		return run(systemd("systemd-cryptsetup"), "attach", benchMapping, v.path, key, options)
	}
}

// detach leaves nothing for udev to do while the other side is timed.
func detach() error {
	return errors.Join(run("dmsetup", "remove", "--retry", benchMapping), settle())
}

func settle() error { return run("udevadm", "settle") }
