package grafana

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"luksmediad/internal/api"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
)

// status is what the page would show; nobody looks at it here.
type status struct{}

func (status) Status(context.Context) (api.Status, error) { return api.Status{}, nil }

// startDaemon serves a board and a collector on loopback, with a write probe that really writes, several times a second.
func startDaemon(t *testing.T) (address string) {
	t.Helper()
	board := health.NewBoard(health.Options{})
	for _, code := range health.Codes() {
		board.Set(code, health.OK, "", "")
	}
	board.Set(health.Thumbnail, health.Fail, health.ReasonSynapseUnreachable, "")
	var levels []string
	for _, level := range volume.Levels() {
		levels = append(levels, string(level))
	}
	collector := health.NewCollector(board, health.CollectorOptions{
		UnlockReasons: []string{"tpm_policy"},
		Levels:        levels,
		Purposes:      volume.Purposes(),
	})
	collector.SetProtection(levels[0])
	collector.SetKeyslots([]string{"recovery", "tpm2"})
	collector.SetHeaderBackup(time.Now().Add(-time.Hour))
	collector.SetRecoveryDrill(time.Now().Add(-time.Hour))
	collector.SetContainer(50<<30, "aes-xts-plain64", 4096)
	collector.SetBacking(20 << 30)
	collector.SetRoom(health.Room{Used: 10 << 30, Left: 40 << 30, Inodes: 1000, InodesLeft: 900})
	collector.ObserveUnlock(time.Second, "tpm_policy")
	collector.ObserveUnlock(time.Second, "")

	dir := filepath.Join(t.TempDir(), "private")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var stat syscall.Stat_t
	if err := syscall.Stat(dir, &stat); err != nil {
		t.Fatal(err)
	}
	prober := health.NewProber(board, health.ProberOptions{Interval: 300 * time.Millisecond, Deadline: 250 * time.Millisecond, Observe: collector.ObserveProbe},
		&health.WriteProbe{Dir: dir, Device: func() (uint64, error) { return stat.Dev, nil }})
	server := api.New(api.Backend{Health: board, Metrics: health.MetricsHandler(health.NewRegistry(collector)), Status: status{},
		Explain: func(error) api.Explanation { return api.Explanation{} }}, slog.New(slog.DiscardHandler))
	listener, err := api.ListenLoopback(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	background(t, func(ctx context.Context) { prober.Run(ctx) })
	background(t, func(ctx context.Context) {
		if err := server.ServeReadOnly(ctx, listener); err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

func background(t *testing.T, run func(context.Context)) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { run(ctx); close(ended) }()
	t.Cleanup(func() { cancel(); <-ended })
}

const configuration = `global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}
rule_files: [%s]
scrape_configs:
  - {job_name: luksmediad, static_configs: [{targets: ['%s']}]}
`

// prometheus is a running one.
type prometheus struct{ url string }

// startPrometheus scrapes the daemon twice a second, with the rules that are shipped.
func startPrometheus(t *testing.T, daemon string) prometheus {
	t.Helper()
	dir := t.TempDir()
	rules, err := filepath.Abs("../prometheus/luksmediad.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yml"), fmt.Appendf(nil, configuration, rules, daemon), 0o600); err != nil {
		t.Fatal(err)
	}
	address := freeAddress(t)
	command := exec.Command("prometheus", "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+address, "--log.level=warn")
	var said bytes.Buffer
	command.Dir, command.Stdout, command.Stderr = dir, &said, &said
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := command.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := command.Wait(); err != nil || t.Failed() {
			t.Logf("prometheus: %v\n%s", err, &said)
		}
	})
	return prometheus{"http://" + address}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// get decodes what Prometheus answers; an error while it starts is one like any other.
func (p prometheus) get(path string, query url.Values, into any) error {
	response, err := http.Get(p.url + path + "?" + query.Encode())
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	answer := struct {
		Status, Error string
		Data          any
	}{Data: into}
	if err := json.Unmarshal(text, &answer); err != nil || answer.Status != "success" {
		return fmt.Errorf("%s %s %w: %s", response.Status, answer.Error, err, text)
	}
	return nil
}

// values asks one query now.
func (p prometheus) values(expr string) ([]string, error) {
	var data struct {
		Result []struct{ Value [2]any }
	}
	if err := p.get("/api/v1/query", url.Values{"query": {expr}}, &data); err != nil {
		return nil, err
	}
	var values []string
	for _, series := range data.Result {
		values = append(values, fmt.Sprint(series.Value[1]))
	}
	return values, nil
}

// await waits until a query has a value.
func (p prometheus) await(t *testing.T, expr string) {
	t.Helper()
	var values []string
	var err error
	for range 120 {
		if values, err = p.values(expr); err == nil && len(values) > 0 {
			return
		}
		time.Sleep(500 * time.Millisecond)
	}
	t.Fatalf("%s: %v, %v", expr, values, err)
}

// shown replaces the variables as Grafana does.
func shown(expr string) string {
	return strings.NewReplacer("$job", "luksmediad", "$instance", ".+", "$__rate_interval", "10s").Replace(expr)
}

// A real Prometheus scrapes the real server: each panel has something to show, and each rule can be evaluated.
func TestEveryPanelHasData(t *testing.T) {
	p := startPrometheus(t, startDaemon(t))
	p.await(t, `count_over_time(luksmediad_ready[30s]) > 6`)
	for _, panel := range read(t).queries() {
		for _, target := range panel.Targets {
			values, err := p.values(shown(target.Expr))
			if err != nil || len(values) == 0 {
				t.Errorf("%s: %s: %v, %v", panel.Title, target.Expr, values, err)
			}
			if !slices.ContainsFunc(values, func(value string) bool { return value != "NaN" }) {
				t.Errorf("%s: %s is only NaN", panel.Title, target.Expr)
			}
		}
	}
	p.requireHealthyRules(t)
	if values, err := p.values(`ALERTS{alertname="LuksmediadConditionDegraded", code="thumbnail", alertstate="pending"}`); err != nil || len(values) != 1 {
		t.Errorf("the thumbnail's warning is no alert: %v, %v", values, err)
	}
}

func (p prometheus) requireHealthyRules(t *testing.T) {
	t.Helper()
	var data struct {
		Groups []struct {
			Rules []struct{ Name, Health, LastError string }
		}
	}
	if err := p.get("/api/v1/rules", nil, &data); err != nil || len(data.Groups) != 1 {
		t.Fatalf("%+v, %v", data, err)
	}
	for _, rule := range data.Groups[0].Rules {
		if rule.Health != "ok" {
			t.Errorf("rule %s is %s: %s", rule.Name, rule.Health, rule.LastError)
		}
	}
}
