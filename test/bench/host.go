package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
)

// measureHost takes the figures that need neither root nor a device mapper.
func measureHost(runs int) ([]figure, error) {
	var figures []figure
	for _, part := range []func(string, int) (figure, error){proveNamed, unseal} {
		dir, err := os.MkdirTemp("", "bench")
		if err != nil {
			return nil, err
		}
		f, err := part(dir, runs)
		if err := os.RemoveAll(dir); err != nil {
			return nil, err
		}
		if err != nil {
			return nil, err
		}
		figures = append(figures, f)
	}
	return figures, nil
}

// proveNamed compares what a keyslot costs that is named, with the same cryptsetup on the same container.
func proveNamed(dir string, runs int) (figure, error) {
	f := figure{name: "the machine's key proven behind an Argon2id keyslot 0, beside cryptsetup open --test-passphrase without --key-slot", unit: "ms"}
	v, err := newVault(dir, unlock.HumanPBKDF)
	if err != nil {
		return f, err
	}
	file, err := os.Open(v.path)
	if err != nil {
		return f, err
	}
	defer file.Close()
	return f, turns{}.compare(&f, runs, func() error {
		header, err := luks2.Read(file, containerBytes)
		if err == nil {
			err = header.Validate(containerBytes)
		}
		if err != nil {
			return err
		}
		return v.cryptsetup.Prove(context.Background(), v.path, header, v.key, 1)
	}, func() error {
		return run("cryptsetup", "open", "--test-passphrase", "--type", "luks2", "--key-file", v.keyFile, v.path)
	})
}

// unseal compares a token of systemd with the three programs that a shell script needs for a sealed object, which has no
// policy and is loaded under the same persistent key: the peer opens no session for a policy and none to hide the key.
func unseal(dir string, runs int) (figure, error) {
	f := figure{name: "unseal, beside tpm2_load + tpm2_unseal + tpm2_flushcontext", unit: "ms"}
	tpm, end := newTPM()
	defer end()
	token, err := seal(tpm.TCTI())
	if err != nil {
		return f, err
	}
	key := filepath.Join(dir, "key")
	file := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(key, []byte(strings.Repeat("k", 32)), 0o600); err != nil {
		return f, err
	}
	if err := tools(tpm.TCTI(), "tpm2_create", "-C", srkHandle, "-i", key, "-u", file("public"), "-r", file("private")); err != nil {
		return f, err
	}
	tpm.Restart()
	tpm.Extend(7, "firmware")
	if err := printCommands(tpm.Socket(), token); err != nil {
		return f, err
	}
	return f, turns{}.compare(&f, runs, func() error { return unsealOnce(tpm.TCTI(), token) }, func() error {
		for _, command := range [][]string{
			{"tpm2_load", "-C", srkHandle, "-u", file("public"), "-r", file("private"), "-c", file("context")},
			{"tpm2_unseal", "-c", file("context"), "-o", file("unsealed")},
			{"tpm2_flushcontext", "-t"},
		} {
			if err := tools(tpm.TCTI(), command...); err != nil {
				return err
			}
		}
		return nil
	})
}

// srkHandle is where tokens of systemd 254 and later, and luksmediad's, have their storage root key.
const srkHandle = "0x81000001"

// tools runs a program of tpm2-tools on the TPM.
func tools(tcti string, command ...string) error {
	return run(command[0], append(command[1:], "--tcti", tcti)...)
}

func seal(tcti string) (*tpm2.Token, error) {
	ctx := context.Background()
	device, err := tpm2.Open(ctx, tcti)
	if err != nil {
		return nil, err
	}
	defer device.Close()
	key, err := secret.Random(32)
	if err != nil {
		return nil, err
	}
	defer key.Wipe()
	return device.Seal(ctx, key, tpm2.SealOptions{PCRs: []int{7}})
}

// unsealOnce opens the TPM anew, as an opening of the volume does.
func unsealOnce(tcti string, token *tpm2.Token) error {
	ctx := context.Background()
	device, err := tpm2.Open(ctx, tcti)
	if err != nil {
		return err
	}
	defer device.Close()
	key, err := device.Unseal(ctx, token)
	key.Wipe()
	return err
}

// printCommands says which commands one unsealing sends.
func printCommands(socket string, token *tpm2.Token) error {
	relay, err := newRelay(socket)
	if err != nil {
		return err
	}
	defer relay.Close()
	if err := unsealOnce("swtpm:path="+relay.path, token); err != nil {
		return err
	}
	names := relay.commands()
	fmt.Printf("One unsealing sends %d commands to the TPM: %s.\n\n", len(names), strings.Join(names, ", "))
	return nil
}
