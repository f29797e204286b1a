package config

import (
	"fmt"
	"strings"
)

// suggest names the known key that was probably meant, or all of them.
func suggest(name string, known []string) string {
	best, least := "", 3 // two typing errors at most
	for _, candidate := range known {
		if d := distance(name, candidate); d < least && d < len(candidate) {
			best, least = candidate, d
		}
	}
	if best == "" {
		return "known are: " + strings.Join(known, ", ")
	}
	return fmt.Sprintf("the nearest known key is %q", best)
}

// distance counts the insertions, deletions and replacements that make b of a (Levenshtein's distance).
func distance(a, b string) int {
	if abs := max(len(a)-len(b), len(b)-len(a)); abs > 2 {
		return abs // long input must not cost time
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
