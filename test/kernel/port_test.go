//go:build kernel

package kernel

import (
	"net"
	"testing"
)

// Any local user can take the port of the read-only listener. That must cost the metrics only.
func TestTakenPortDoesNotKeepTheVolumeClosed(t *testing.T) {
	s := newCreated(t)
	taken, err := net.Listen("tcp", "127.0.0.1:10165")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	s.serve()
	s.requireOpen()
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the daemon listens after all", func() bool {
		conn, err := net.Dial("tcp", "127.0.0.1:10165")
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}
