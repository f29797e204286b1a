// Package grafana has no code: its tests check the dashboard.
package grafana

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// dashboard is as much of Grafana's model as matters here.
type dashboard struct {
	ID         *int     `json:"id"`
	UID        string   `json:"uid"`
	Tags       []string `json:"tags"`
	Schema     int      `json:"schemaVersion"`
	Inputs     any      `json:"__inputs"`
	Templating struct {
		List []struct {
			Name, Type string
		} `json:"list"`
	} `json:"templating"`
	Panels []panel `json:"panels"`
}

type panel struct {
	ID          int
	Type, Title string
	Datasource  map[string]string
	FieldConfig struct {
		Defaults struct{ Unit string }
	}
	GridPos struct{ H, W, X, Y int }
	Targets []target
}

type target struct {
	Expr       string
	Datasource map[string]string
}

func read(t *testing.T) dashboard {
	t.Helper()
	text, err := os.ReadFile("luksmediad.json")
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// queries are the panels that ask something.
func (d dashboard) queries() []panel {
	return slices.DeleteFunc(slices.Clone(d.Panels), func(p panel) bool { return p.Type == "row" })
}

// It can be imported anywhere: its identity is fixed, its data source and what it shows are variables.
func TestDashboard(t *testing.T) {
	d := read(t)
	if d.ID != nil || d.UID != "luksmediad" || len(d.Tags) == 0 || d.Schema < 36 || d.Inputs != nil {
		t.Errorf("id %v, uid %q, tags %v, schema %d, inputs %v", d.ID, d.UID, d.Tags, d.Schema, d.Inputs)
	}
	var variables []string
	for _, v := range d.Templating.List {
		variables = append(variables, v.Name+" "+v.Type)
	}
	if want := []string{"datasource datasource", "job query", "instance query"}; !slices.Equal(variables, want) {
		t.Errorf("variables %v, want %v", variables, want)
	}
	seen := map[int]bool{}
	for _, p := range d.Panels {
		if seen[p.ID] || p.Title == "" {
			t.Errorf("panel %d %q is there twice or has no title", p.ID, p.Title)
		}
		seen[p.ID] = true
	}
	for _, p := range d.queries() {
		if p.FieldConfig.Defaults.Unit == "" || p.Datasource["uid"] != "${datasource}" || len(p.Targets) == 0 {
			t.Errorf("%s: unit %q, data source %v, %d queries", p.Title, p.FieldConfig.Defaults.Unit, p.Datasource, len(p.Targets))
		}
		for _, q := range p.Targets {
			if own := strings.Count(q.Expr, `{job=~"$job", instance=~"$instance"`); own != len(metric.FindAllString(q.Expr, -1)) {
				t.Errorf("%s: %s does not go by the variables", p.Title, q.Expr)
			}
		}
	}
}

// metric are the names that are luksmediad's own or its process's.
var metric = regexp.MustCompile(`\b(luksmediad|process)_[a-z_]+`)

// No panel lies on another one.
func TestPanelsDoNotOverlap(t *testing.T) {
	taken := map[string]string{}
	for _, p := range read(t).Panels {
		if p.GridPos.X+p.GridPos.W > 24 || p.GridPos.W == 0 || p.GridPos.H == 0 {
			t.Errorf("%s is at %+v", p.Title, p.GridPos)
		}
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				cell := fmt.Sprint(p.GridPos.X+x, ",", p.GridPos.Y+y)
				if other := taken[cell]; other != "" {
					t.Fatalf("%s lies on %s", p.Title, other)
				}
				taken[cell] = p.Title
			}
		}
	}
}
