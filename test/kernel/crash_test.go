//go:build kernel

package kernel

import (
	"bufio"
	"os/exec"
	"strings"
)

// killCreateAt starts a create and kills it when it says that it begins a step.
func (s *site) killCreateAt(step string) {
	s.t.Helper()
	cmd := exec.Command(binary(s.t), "--config", s.config, "--json", "create", "--yes")
	output, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	lines := bufio.NewScanner(output)
	reached := false
	for !reached && lines.Scan() {
		reached = strings.Contains(lines.Text(), `"step":"`+step+`"`)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if !reached {
		s.t.Fatalf("create did not come to step %q", step)
	}
}
