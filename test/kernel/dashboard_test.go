//go:build kernel

package kernel

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// A real Prometheus scrapes the real daemon, whose volume is open: each panel of the dashboard has something to show, and each rule can be
// evaluated. A Synapse that does not answer shows that a warning becomes an alert.
func TestEveryPanelHasData(t *testing.T) {
	s := newCreated(t)
	token := filepath.Join(s.dir, "synapse.token")
	s.write(token, "token")
	s.synapse = fmt.Sprintf(`, synapse: {url: "http://127.0.0.1:1", token_file: %s}`, token)
	s.configure()
	s.serve()
	p := startPrometheus(t)
	for _, query := range panels(t) {
		p.await(query.panel, query.Expr)
	}
	p.await("the thumbnail's warning", `ALERTS{alertname="LuksmediadConditionDegraded", code="thumbnail", alertstate="pending"}`)
	p.requireHealthyRules()
}

// panelQuery is what a panel of the dashboard asks.
type panelQuery struct{ panel, Expr string }

// panels are all queries of the dashboard; deploy/grafana checks the rest of it.
func panels(t *testing.T) (queries []panelQuery) {
	t.Helper()
	text, err := os.ReadFile("../../deploy/grafana/luksmediad.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []panelQuery
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, p := range dashboard.Panels {
		for _, query := range p.Targets {
			queries = append(queries, panelQuery{"panel " + p.Title, shown(query.Expr)})
		}
	}
	if len(queries) == 0 {
		t.Fatal("the dashboard asks nothing")
	}
	return queries
}

// shown replaces the variables as Grafana does.
func shown(expr string) string {
	return strings.NewReplacer("$job", "luksmediad", "$instance", ".+", "$__rate_interval", "10s").Replace(expr)
}

const prometheusAddress = "127.0.0.1:9090"

const scrapes = `global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}
rule_files: [%s]
scrape_configs:
  - {job_name: luksmediad, static_configs: [{targets: ['%s']}]}
`

// prometheus is a running one.
type prometheus struct{ t *testing.T }

// startPrometheus scrapes the daemon twice a second, with the rules that are shipped.
func startPrometheus(t *testing.T) prometheus {
	t.Helper()
	rules, err := filepath.Abs("../../deploy/prometheus/luksmediad.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config, said := filepath.Join(dir, "prometheus.yml"), filepath.Join(dir, "said")
	if err := os.WriteFile(config, fmt.Appendf(nil, scrapes, rules, strings.TrimPrefix(address, "http://")), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(said)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	command := exec.Command("prometheus", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+prometheusAddress, "--log.level=warn")
	command.Dir, command.Stdout, command.Stderr = dir, log, log
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := command.Process.Signal(syscall.SIGTERM)
		if ended := command.Wait(); err != nil || ended != nil || t.Failed() {
			text, _ := os.ReadFile(said)
			t.Logf("prometheus: %v, %v\n%s", err, ended, text)
		}
	})
	return prometheus{t}
}

// get decodes what Prometheus answers; an error while it starts is one like any other.
func (p prometheus) get(path string, query url.Values, into any) error {
	response, err := client.Get("http://" + prometheusAddress + path + "?" + query.Encode())
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
	if err := json.Unmarshal(text, &answer); err != nil {
		return fmt.Errorf("%s: %w: %s", response.Status, err, text)
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", response.Status, answer.Error)
	}
	return nil
}

// values asks one query now.
func (p prometheus) values(expr string) (values []string, err error) {
	var data struct {
		Result []struct{ Value [2]any }
	}
	err = p.get("/api/v1/query", url.Values{"query": {expr}}, &data)
	for _, series := range data.Result {
		values = append(values, fmt.Sprint(series.Value[1]))
	}
	return values, err
}

// await waits until a query has a value that can be shown.
func (p prometheus) await(what, expr string) {
	p.t.Helper()
	var values []string
	var err error
	defer func() {
		if p.t.Failed() {
			p.t.Logf("%s: %q, %v", what, values, err)
		}
	}()
	eventually(p.t, what+": "+expr, func() bool {
		values, err = p.values(expr)
		return err == nil && slices.ContainsFunc(values, func(value string) bool { return value != "NaN" })
	})
}

func (p prometheus) requireHealthyRules() {
	p.t.Helper()
	var data struct {
		Groups []struct {
			Rules []struct{ Name, Health, LastError string }
		}
	}
	if err := p.get("/api/v1/rules", nil, &data); err != nil || len(data.Groups) != 1 {
		p.t.Fatalf("%+v, %v", data, err)
	}
	for _, rule := range data.Groups[0].Rules {
		if rule.Health != "ok" {
			p.t.Errorf("rule %s is %s: %s", rule.Name, rule.Health, rule.LastError)
		}
	}
}
