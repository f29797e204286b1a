// Package systemd has no code: its tests check the files that are installed for systemd.
package systemd

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"luksmediad/internal/config"
	"luksmediad/internal/journal"
	"luksmediad/internal/volume"
	"luksmediad/test/golden"
)

// The message catalog is that of the events.
func TestCatalog(t *testing.T) {
	golden.Compare(t, "luksmediad.catalog", journal.Catalog())
}

// units are the installed units and drop-ins.
func units(t *testing.T) []string {
	t.Helper()
	services, err := filepath.Glob("*.service")
	if err != nil {
		t.Fatal(err)
	}
	services = append(services, "luksmediad.socket")
	dropIns, err := filepath.Glob("*.service.d/*.conf")
	if err != nil {
		t.Fatal(err)
	}
	if len(services) == 0 || len(dropIns) == 0 {
		t.Fatalf("found %v and %v", services, dropIns)
	}
	return append(services, dropIns...)
}

// directives are the settings of a unit, in its order; comments are none.
func directives(t *testing.T, path string) []string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var found []string
	for lines := bufio.NewScanner(file); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		if line != "" && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "[") {
			found = append(found, line)
		}
	}
	return found
}

// namespacing are the directives that give a service a mount namespace of its own, where the host would not see what it
// mounts (systemd.exec(5); exec_needs_mount_namespace() in systemd's src/core, up to v258).
func namespacing() []string {
	return []string{
		"ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateNetwork", "NetworkNamespacePath", "PrivateIPC",
		"IPCNamespacePath", "PrivateUsers", "PrivatePIDs", "PrivateBPF", "ProtectProc", "ProcSubset", "ProtectKernelModules",
		"ProtectKernelLogs", "ProtectKernelTunables", "ProtectControlGroups", "LogNamespace", "RootImage", "RootDirectory",
		"RootEphemeral", "MountAPIVFS", "BindLogSockets", "ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "ExecPaths", "NoExecPaths",
		"BindPaths", "BindReadOnlyPaths", "TemporaryFileSystem", "MountImages", "ExtensionImages", "ExtensionDirectories",
		"MountFlags", "DynamicUser",
	}
}

// fault 77
func TestNoPrivateMountNamespace(t *testing.T) {
	for _, unit := range units(t) {
		for _, directive := range directives(t, unit) {
			name, value, _ := strings.Cut(directive, "=")
			if slices.Contains(namespacing(), name) {
				t.Errorf("%s: %s hides the mounts", unit, directive)
			}
			if name == "PrivateMounts" && value != "no" {
				t.Errorf("%s: %s", unit, directive)
			}
			// "StateDirectory=a:b:ro" mounts the folder read-only.
			if strings.HasSuffix(name, "Directory") && strings.HasSuffix(value, ":ro") {
				t.Errorf("%s: %s hides the mounts", unit, directive)
			}
		}
	}
	if !slices.Contains(directives(t, "luksmediad.service"), "PrivateMounts=no") {
		t.Error("luksmediad.service does not say PrivateMounts=no")
	}
}

// docker is as much of Docker's own unit as the gate's order depends on.
const docker = `[Unit]
Description=Docker
After=network-online.target firewalld.service containerd.service time-set.target
Wants=network-online.target containerd.service
[Service]
Type=notify
ExecStart=/bin/true
[Install]
WantedBy=multi-user.target
`

// verify is what systemd-analyze says about the shipped units beside a docker.service, with drop-ins for the daemon and its sockets.
func verify(t *testing.T, docker string, dropIns ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i, text := range dropIns {
		unit := "luksmediad.service"
		if strings.HasPrefix(text, "[Socket]") {
			unit = "luksmediad.socket"
		}
		write(t, filepath.Join(dir, unit+".d", fmt.Sprint(i, ".conf")), text)
	}
	for _, unit := range units(t) {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, unit), strings.ReplaceAll(string(text), "/usr/bin/luksmediad", "/bin/true"))
	}
	write(t, filepath.Join(dir, "docker.service"), docker)
	cmd := exec.Command("systemd-analyze", "verify", "--man=no", "--generators=no",
		filepath.Join(dir, "luksmediad.service"), filepath.Join(dir, "luksmediad-gate.service"), filepath.Join(dir, "luksmediad.socket"),
		filepath.Join(dir, "docker.service"))
	said, err := cmd.CombinedOutput()
	if err != nil {
		return string(said) + err.Error()
	}
	return string(said)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestUnitsAreClean(t *testing.T) {
	if said := verify(t, docker); said != "" {
		t.Error(said)
	}
}

// dropIns are the examples of a page.
func dropIns(t *testing.T, path string) []string {
	t.Helper()
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, block := range strings.Split(string(page), "```ini\n")[1:] {
		text, _, _ := strings.Cut(block, "```")
		found = append(found, text)
	}
	if len(found) == 0 {
		t.Fatalf("no example in %s", path)
	}
	return found
}

// The drop-ins that key sources, a scraper and another address need are clean too, make no cycle, and hide no mounts.
func TestDropInsOfTheDocumentationAreClean(t *testing.T) {
	examples := append(dropIns(t, "../../docs/keys.md"), dropIns(t, "../../docs/operations.md")...)
	if said := verify(t, docker, examples...); said != "" {
		t.Error(said)
	}
	for _, example := range examples {
		for line := range strings.Lines(example) {
			if name, _, _ := strings.Cut(line, "="); slices.Contains(namespacing(), name) {
				t.Errorf("%s hides the mounts", line)
			}
		}
	}
	for _, mistake := range []string{"[Service]\nLoadCredentialEncryptd=x\n", "[Socket]\nListenStreams=x\n"} {
		if said := verify(t, docker, mistake); !strings.Contains(said, "Unknown key") {
			t.Errorf("a mistake is not told: %q", said)
		}
	}
}

// A drop-in adds to a list, and the daemon takes one control socket and one address: one that names another address names all anew.
func TestDropInsOfTheSocketTakeTheListBack(t *testing.T) {
	var checked int
	for _, example := range dropIns(t, "../../docs/operations.md") {
		if !strings.HasPrefix(example, "[Socket]") {
			continue
		}
		checked++
		var sockets []string
		for line := range strings.Lines(example) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), "ListenStream="); ok {
				sockets = append(sockets, value)
			}
		}
		if len(sockets) != 3 || sockets[0] != "" || sockets[1] != "/run/luksmediad/control.sock" {
			t.Errorf("sockets %q", sockets)
		}
	}
	if checked == 0 {
		t.Error("no example")
	}
}

// What the tests above rely on: mistakes and cycles are told.
func TestVerifyTellsMistakes(t *testing.T) {
	for change, want := range map[string]string{
		"[Service]\nTypo=yes\n":                    "Unknown key",
		"[Unit]\nBefore=luksmediad-gate.service\n": "ordering cycle",
	} {
		if said := verify(t, docker+change); !strings.Contains(said, want) {
			t.Errorf("%q: %q does not tell of: %s", change, said, want)
		}
	}
}

// The drop-in makes Docker wait for the gate, and stop before it.
func TestDockerRequiresTheGate(t *testing.T) {
	have := directives(t, "docker.service.d/luksmediad.conf")
	for _, want := range []string{"Requires=luksmediad-gate.service", "After=luksmediad-gate.service"} {
		if !slices.Contains(have, want) {
			t.Errorf("no %s in %v", want, have)
		}
	}
}

// The daemon comes back from a crash by itself: those of Go, SIGABRT of the watchdog included, end with 2. Only what a restart cannot mend
// keeps it down.
func TestCrashesAreRestarted(t *testing.T) {
	page, err := os.ReadFile("../../docs/exit-codes.md")
	if err != nil {
		t.Fatal(err)
	}
	var prevented []string
	for _, directive := range directives(t, "luksmediad.service") {
		if codes, ok := strings.CutPrefix(directive, "RestartPreventExitStatus="); ok {
			prevented = append(prevented, strings.Fields(codes)...)
		}
	}
	if len(prevented) != 1 || !strings.Contains(string(page), "| "+prevented[0]+" | the daemon does not start: ") {
		t.Errorf("no restart after %v", prevented)
	}
	if !slices.Contains(directives(t, "luksmediad.service"), "Restart=on-failure") {
		t.Error("no restart")
	}
}

// A cryptsetup that is ended for the memory of Argon2id must not have the service stopped with it (systemd.service(5), OOMPolicy=).
func TestDaemonOutlivesCryptsetup(t *testing.T) {
	if !slices.Contains(directives(t, "luksmediad.service"), "OOMPolicy=continue") {
		t.Error("the service ends with the first program that runs out of memory")
	}
}

// Without a configuration the gate is only skipped where no volume is set up.
func TestLostConfigurationKeepsTheGateShut(t *testing.T) {
	have := directives(t, "luksmediad-gate.service")
	for _, want := range []string{"ConditionPathExists=|" + config.DefaultPath,
		"ConditionPathExistsGlob=|" + filepath.Join(config.StateDir, volume.RecordGlob)} {
		if !slices.Contains(have, want) {
			t.Errorf("no %s in %v", want, have)
		}
	}
}

// Every file here is installed.
func TestEverythingIsInstalled(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := filepath.Glob("luksmediad*")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(entries, "docker.service.d/luksmediad.conf") {
		if !strings.Contains(string(makefile), "deploy/systemd/"+file) {
			t.Errorf("make install does not install %s", file)
		}
	}
}

// The exposure that "systemd-analyze security" computes, times ten, may fall but not rise.
func TestExposure(t *testing.T) {
	cmd := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=50", "luksmediad.service")
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, said)
	}
}
