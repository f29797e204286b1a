//go:build boot

package boot

import (
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"luksmediad/internal/synapse"
	"luksmediad/pkg/health"
)

// TestCanary probes a Synapse as in a week, with the right to delete, and without it where only media are served, and counts what that leaves in
// its database and in its store.
func TestCanary(t *testing.T) {
	h := startHomeserver(t)
	t.Parallel()
	c := &canaryWeeks{Homeserver: h, dir: t.TempDir(), now: time.Now(), token: secretFile(t, synapseToken), server: h.mediaURL}
	if err := synapse.NewClient(h.mediaURL, c.token, "").Reach(t.Context()); err != nil {
		t.Error(err)
	}
	c.probe("", 1)
	files, before := len(h.Files()), h.Rows()
	if files == 0 || before["local_media_repository"] != 1 {
		t.Fatalf("%d files, %d rows", files, before["local_media_repository"])
	}

	c.probe("", weekOfRounds)
	c.check("without the right to delete", files, before, 1+dailies)
	for table, now := range h.Rows() {
		if !slices.Contains(canaryTables(), table) && now > before[table] {
			t.Errorf("%d rows in %s, at first %d", now, table, before[table])
		}
	}
	c.server = h.url
	c.probe(secretFile(t, h.NewAdmin("janitor")), weekOfRounds)
	c.check("with it", files, before, 1)
}

const (
	weekOfRounds = 1000
	roundEvery   = 10 * time.Minute
	dailies      = int(weekOfRounds * roundEvery / (24 * time.Hour)) // after the upload at the start
)

// canaryWeeks is a probe whose clock is fast. The daemon is restarted every now and then.
type canaryWeeks struct {
	*Homeserver
	dir, token string
	now        time.Time
	server     string // the URL that is probed
}

func (c *canaryWeeks) probe(adminToken string, rounds int) {
	c.t.Helper()
	var stat syscall.Stat_t
	if err := syscall.Stat(c.Store(), &stat); err != nil {
		c.t.Fatal(err)
	}
	var probe *health.ThumbnailProbe
	start := time.Now()
	for i := range rounds {
		if i%50 == 0 {
			probe = &health.ThumbnailProbe{
				Store: c.Store(), Dir: c.dir, Device: func() (uint64, error) { return stat.Dev, nil },
				Server: synapse.NewClient(c.server, c.token, adminToken), Now: func() time.Time { return c.now },
			}
		}
		if _, err := probe.Run(c.t.Context()); err != nil {
			c.t.Fatalf("round %d: %v", i, err)
		}
		c.now = c.now.Add(roundEvery)
	}
	c.t.Logf("%d rounds take %s", rounds, since(start))
}

// canaryTables have a row for each upload and for each of its thumbnails.
func canaryTables() []string {
	return []string{"local_media_repository", "local_media_repository_thumbnails"}
}

func (c *canaryWeeks) check(when string, files int, before map[string]int, canaries int) {
	c.t.Helper()
	if now := c.Files(); len(now) != files {
		c.t.Errorf("%s: %d files, at first %d: %q", when, len(now), files, now)
	}
	rows := c.Rows()
	for _, table := range canaryTables() {
		if before[table] == 0 || rows[table] != canaries*before[table] {
			c.t.Errorf("%s: %d rows in %s, of one canary %d, want those of %d", when, rows[table], table, before[table], canaries)
		}
	}
}

func secretFile(t *testing.T, secret string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(name, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
