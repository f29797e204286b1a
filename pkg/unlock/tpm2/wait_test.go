package tpm2

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"luksmediad/test/swtpm"
)

// fault 37: a TPM that comes late is waited for. The address is there before the emulator listens on it again.
func TestOpenWaitsForALateTPM(t *testing.T) {
	s := swtpm.Start(t)
	token := seal(t, s, newKey(t))
	s.Stop()
	type outcome struct {
		device *Device
		err    error
	}
	opened := make(chan outcome, 1)
	began := time.Now()
	go func() {
		d, err := OpenWait(t.Context(), s.TCTI(), 20*time.Second)
		opened <- outcome{d, err}
	}()
	time.Sleep(300 * time.Millisecond)
	s.Restart()
	waited := <-opened
	if waited.err != nil {
		t.Fatal(waited.err)
	}
	d := waited.device
	defer d.Close()
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("OpenWait took %v", took)
	}
	key, err := d.Unseal(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	key.Wipe()
}

// fault 37: but not for ever.
func TestOpenWaitGivesUp(t *testing.T) {
	began := time.Now()
	_, err := OpenWait(t.Context(), "swtpm:path="+filepath.Join(t.TempDir(), "none"), 250*time.Millisecond)
	wantClass(t, err, ErrAbsent)
	if took := time.Since(began); took < 250*time.Millisecond || took > 5*time.Second {
		t.Errorf("OpenWait took %v", took)
	}
}

func TestOpenWaitEndsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := OpenWait(ctx, "swtpm:path="+filepath.Join(t.TempDir(), "none"), time.Minute)
	wantClass(t, err, context.DeadlineExceeded)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("OpenWait took %v", took)
	}
}

// fault 38: what will not come is not waited for, and neither is what is wrong in another way.
func TestOpenWaitsForNothingElse(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	never := func() bool { return false }
	for device, open := range map[string]func() error{
		file:       func() error { _, err := OpenWait(t.Context(), file, time.Minute); return err },
		"tpmrm0":   func() error { _, err := OpenWait(t.Context(), "tpmrm0", time.Minute); return err },
		"announce": func() error { _, err := openWait(t.Context(), file+".none", time.Minute, never); return err },
	} {
		began := time.Now()
		if err := open(); err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", device, err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s: took %v", device, took)
		}
	}
}

// fault 38: a machine without TPM, with a TPM 1.2, with firmware that announces one, with a chip that has no node yet.
func TestAnnounced(t *testing.T) {
	for name, machine := range map[string]struct {
		files map[string]string
		want  bool
	}{
		"none":     {map[string]string{"firmware/acpi/tables/DSDT": ""}, false},
		"firmware": {map[string]string{"firmware/acpi/tables/TPM2": ""}, true},
		"TPM 1.2":  {map[string]string{"class/tpm/tpm0/tpm_version_major": "1\n"}, false},
		"chip":     {map[string]string{"class/tpm/tpm0/tpm_version_major": "2\n"}, true},
		"old kernel, which does not tell the version": {map[string]string{"class/tpm/tpm0/dev": "10:224\n"}, true},
		"both":                       {map[string]string{"class/tpm/tpm0/tpm_version_major": "1", "class/tpm/tpm1/tpm_version_major": "2"}, true},
		"node still missing in /dev": {map[string]string{"class/tpmrm/tpmrm0/dev": "253:65536\n"}, true},
	} {
		sys := t.TempDir()
		for file, content := range machine.files {
			path := filepath.Join(sys, file)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := announced(sys); got != machine.want {
			t.Errorf("%s: announced is %v", name, got)
		}
	}
}
