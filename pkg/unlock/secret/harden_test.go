package secret

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What Harden changes cannot be undone, so it is done in children: this same
// test binary, told by its environment which part to play.
const roleVariable = "SECRET_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "harden":
		playHarden()
	case "panic":
		playPanic()
	case "memlock":
		playMemlock()
	default:
		os.Exit(m.Run())
	}
}

// child runs this test binary in a role and returns all it printed.
func child(t *testing.T, role string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = []string{roleVariable + "=" + role}
	out, err := cmd.CombinedOutput()
	if err != nil && role != "panic" {
		t.Fatalf("child %s: %v: %s", role, err, out)
	}
	return string(out)
}

func playHarden() {
	show := func(when string) {
		dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
		var core unix.Rlimit
		unix.Getrlimit(unix.RLIMIT_CORE, &core)
		fmt.Printf("%s: dumpable %d %v, core %d\n", when, dumpable, err, core.Cur)
	}
	unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 4096, Max: 4096})
	show("before")
	fmt.Println("harden:", Harden())
	show("after")
}

func playPanic() {
	if err := Harden(); err != nil {
		fmt.Println(err)
	}
	started := make(chan bool)
	go func() {
		started <- true
		select {}
	}()
	<-started
	panic("as asked")
}

// playMemlock drops CAP_IPC_LOCK, which would lift the limit, and the limit.
func playMemlock() {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		fmt.Println("capset:", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{}); err != nil {
		fmt.Println("setrlimit:", err)
	}
	_, err := New(32)
	fmt.Println("class:", errors.Is(err, ErrNoMemory), err)
}

func TestHarden(t *testing.T) {
	out := child(t, "harden")
	want := "before: dumpable 1 <nil>, core 4096\nharden: <nil>\nafter: dumpable 0 <nil>, core 0\n"
	if !strings.HasPrefix(out, want) { // what follows is a remark of the coverage tool
		t.Errorf("child said\n%s\nwant\n%s", out, want)
	}
}

func TestHardenShowsOneGoroutineOnly(t *testing.T) {
	out := child(t, "panic")
	if !strings.Contains(out, "panic: as asked") || strings.Count(out, "\ngoroutine ") != 1 {
		t.Errorf("child said\n%s", out)
	}
}
