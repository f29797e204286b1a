package api

import "luksmediad/pkg/health"

// Conditions puts a snapshot of a [health.Board] into the words of the API.
func Conditions(snapshot []health.Condition) []Condition {
	conditions := make([]Condition, 0, len(snapshot))
	for _, c := range snapshot {
		conditions = append(conditions, Condition{
			Code:    ConditionCode(c.Code),
			Title:   c.Title,
			Status:  ConditionStatus(c.Status.String()),
			Reason:  Class(c.Reason),
			Text:    c.Text,
			Next:    c.Next,
			Cause:   ConditionCode(c.Cause),
			Since:   c.Since,
			Checked: c.Checked,
		})
	}
	return conditions
}
