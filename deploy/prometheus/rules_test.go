// Package prometheus has no code: its tests check the rules and the example for Prometheus.
package prometheus

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"luksmediad/pkg/health"
)

const rulesFile = "luksmediad.rules.yml"

// promtool runs the program that comes with Prometheus.
func promtool(t *testing.T, stdin io.Reader, args ...string) {
	t.Helper()
	command := exec.CommandContext(t.Context(), "promtool", args...)
	command.Stdin = stdin
	if said, err := command.CombinedOutput(); err != nil || strings.Contains(string(said), "error") {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, said)
	}
}

func TestRules(t *testing.T) {
	promtool(t, nil, "check", "rules", rulesFile)
	promtool(t, nil, "test", "rules", "luksmediad.rules.test.yml")
}

func TestScrapeExample(t *testing.T) { promtool(t, nil, "check", "config", "prometheus.yml") }

// rule is an alert as Prometheus reads it.
type rule struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

func rules(t *testing.T) []rule {
	t.Helper()
	var file struct {
		Groups []struct {
			Rules []rule `yaml:"rules"`
		} `yaml:"groups"`
	}
	readYAML(t, rulesFile, &file)
	if len(file.Groups) != 1 || len(file.Groups[0].Rules) == 0 {
		t.Fatalf("%+v", file)
	}
	return file.Groups[0].Rules
}

func readYAML(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatal(err)
	}
}

// Whoever is woken finds out what to do: each alert links to a section of the runbook, about the condition of its label where it has one.
func TestAlertsSayWhatToDo(t *testing.T) {
	const page = "file:///usr/share/doc/luksmediad/runbook.md#"
	runbook, err := os.ReadFile("../../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(makefile), "docs/runbook.md") {
		t.Error("make install does not install the page")
	}
	for _, r := range rules(t) {
		if !strings.HasPrefix(r.Alert, "Luksmediad") || r.For == "" || !slices.Contains([]string{"warning", "critical"}, r.Labels["severity"]) {
			t.Errorf("%+v", r)
		}
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s is not described", r.Alert)
		}
		section, links := strings.CutPrefix(r.Annotations["runbook_url"], page)
		if !links || section != "{{ $labels.code }}" && !strings.Contains(string(runbook), "\n## "+section+"\n") {
			t.Errorf("%s: no section %s", r.Alert, r.Annotations["runbook_url"])
		}
		if section == "daemon" && !strings.Contains(string(runbook), "`"+r.Alert+"`") {
			t.Errorf("the runbook does not tell what %s is", r.Alert)
		}
	}
}

// Every alert is tested both ways: that it comes, and that it does not.
func TestAlertsAreTested(t *testing.T) {
	var file struct {
		Tests []struct {
			Checks []struct {
				Alert    string           `yaml:"alertname"`
				Expected []map[string]any `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		} `yaml:"tests"`
	}
	readYAML(t, "luksmediad.rules.test.yml", &file)
	comes, stays := map[string]bool{}, map[string]bool{}
	for _, test := range file.Tests {
		for _, check := range test.Checks {
			if len(check.Expected) > 0 {
				comes[check.Alert] = true
			} else {
				stays[check.Alert] = true
			}
		}
	}
	for _, r := range rules(t) {
		if !comes[r.Alert] || !stays[r.Alert] {
			t.Errorf("%s: comes %v, does not come %v", r.Alert, comes[r.Alert], stays[r.Alert])
		}
	}
}

// exposition is what the daemon answers to a scrape, once everything has happened.
func exposition(t *testing.T) string {
	t.Helper()
	board := health.NewBoard(health.Options{})
	c := health.NewCollector(board, health.CollectorOptions{
		UnlockReasons: []string{"tpm_policy"},
		Levels:        []string{"none_same_disk", "snapshot", "unknown"},
		Purposes:      []string{"recovery", "tpm2"},
	})
	c.SetContainer(1<<30, "aes-xts-plain64", 4096)
	c.SetPolicies(map[int]bool{0: true})
	for _, code := range health.Codes() {
		if health.Reasons(code) != nil {
			board.Expect(code, time.Minute)
			c.ObserveProbe(health.Result{Probe: code, Finished: time.Now(), Duration: time.Millisecond})
		}
	}
	answer := httptest.NewRecorder()
	health.MetricsHandler(health.NewRegistry(c)).ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	return answer.Body.String()
}

func TestMetricsSatisfyPromtool(t *testing.T) {
	promtool(t, strings.NewReader(exposition(t)), "check", "metrics")
}

var metric = regexp.MustCompile(`\bluksmediad_[a-z_]+`)

// A rule about a metric that nobody exports would never fire.
func TestRulesAreAboutMetricsThatExist(t *testing.T) {
	text := exposition(t)
	for _, r := range rules(t) {
		for _, name := range metric.FindAllString(r.Expr, -1) {
			if !strings.Contains(text, "# TYPE "+name+" ") {
				t.Errorf("%s: there is no %s", r.Alert, name)
			}
		}
	}
}
