package health

import (
	"net/url"
	"time"
)

// MediaType is that of Report.JSON, as registered by draft-inadarei-api-health-check-06.
const MediaType = "application/health+json"

// Document is a Report in the shape of draft-inadarei-api-health-check-06, section 3.
type Document struct {
	Status      string                `json:"status"` // pass, warn or fail
	Version     string                `json:"version,omitempty"`
	ReleaseID   string                `json:"releaseId,omitempty"`
	ServiceID   string                `json:"serviceId,omitempty"`
	Description string                `json:"description"`
	Output      string                `json:"output,omitempty"` // the first condition that does not hold
	Notes       []string              `json:"notes,omitempty"`
	Checks      map[string][]Observed `json:"checks,omitempty"` // by "write:probe", "mount:state", …
}

// Observed is one element of a Document's checks, section 4 of the draft, and what luksmediad adds. Its value is a word, which has no observedUnit.
type Observed struct {
	ComponentType string     `json:"componentType"`
	ObservedValue string     `json:"observedValue"` // ok, degraded, failed or unknown
	Status        string     `json:"status"`
	Time          *time.Time `json:"time,omitempty"`   // of the last report
	Output        string     `json:"output,omitempty"` // of a condition that does not hold
	Reason        Reason     `json:"reason,omitempty"`
	Next          string     `json:"next,omitempty"`  // the command to type
	Cause         Code       `json:"cause,omitempty"` // the condition that fails first
	Links         *Links     `json:"links,omitempty"`
}

// Links are by their relation, section 4.8 of the draft.
type Links struct {
	Help string `json:"help"` // the section of the runbook
}

// JSON returns the report as a document to be marshalled.
func (r Report) JSON() Document {
	d := Document{
		Status:      r.Status.word(),
		Version:     r.Service.Version,
		ReleaseID:   r.Service.Release,
		ServiceID:   r.Service.ID,
		Description: string(r.Endpoint) + " of luksmediad",
		Checks:      make(map[string][]Observed, len(r.Conditions)),
	}
	for _, name := range r.Unmatched {
		d.Notes = append(d.Notes, "no check "+oneLine(name)+" to exclude")
	}
	for _, c := range r.Conditions {
		observed := c.observed()
		observed.Links = r.links(c.Code)
		d.Checks[c.measurement()] = []Observed{observed}
		if d.Output == "" && c.Status != OK && !c.Hidden() {
			d.Output = c.line(r.At)[len("[-]"):]
		}
	}
	return d
}

func (r Report) links(code Code) *Links {
	if r.Runbook == "" {
		return nil
	}
	section := url.URL{Scheme: "file", Path: r.Runbook, Fragment: string(code)}
	return &Links{section.String()}
}

// measurement is the key of a check, "componentName:measurementName" in the draft.
func (c Condition) measurement() string {
	if c.Probed {
		return string(c.Code) + ":probe"
	}
	return string(c.Code) + ":state"
}

func (c Condition) observed() Observed {
	o := Observed{
		ComponentType: "system", ObservedValue: c.Status.String(), Status: c.cost().word(),
		Reason: c.Reason, Next: c.Next, Cause: c.Cause,
	}
	if c.Status != OK {
		o.Output = c.Text
	}
	if !c.Checked.IsZero() {
		o.Time = new(c.Checked.UTC())
	}
	return o
}

// word is the draft's name of a status.
func (s Status) word() string {
	return map[Status]string{OK: "pass", Warn: "warn", Fail: "fail"}[s]
}
