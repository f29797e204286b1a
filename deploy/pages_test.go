// Package deploy has no code: its test checks the pages as they are installed.
package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"luksmediad/internal/api"
)

// Every link in an installed page leads to an installed page, and to a heading that it has.
func TestInstalledPages(t *testing.T) {
	root := t.TempDir()
	if out, err := exec.Command("make", "-C", "..", "install-pages", "DESTDIR="+root).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	folder := filepath.Join(root, "usr/share/doc/luksmediad")
	pages, err := filepath.Glob(filepath.Join(folder, "*.md"))
	if err != nil || len(pages) < 5 {
		t.Fatal(pages, err)
	}
	if _, err := os.Stat(filepath.Join(root, api.Runbook)); err != nil {
		t.Errorf("what answers name: %v", err)
	}
	link := regexp.MustCompile(`\]\(([^)#]*)(#[^)]*)?\)`)
	for _, page := range pages {
		for _, found := range link.FindAllStringSubmatch(read(t, page), -1) {
			target := filepath.Join(folder, found[1])
			if found[1] == "" {
				target = page
			}
			if strings.HasPrefix(found[1], "https://") {
				continue
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %v", filepath.Base(page), err)
			} else if found[2] != "" && !slices.Contains(anchors(read(t, target)), found[2]) {
				t.Errorf("%s: %s has no %s", filepath.Base(page), filepath.Base(target), found[2])
			}
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// anchors are those of the headings of a page, as GitHub makes them.
func anchors(page string) []string {
	var found []string
	mark := regexp.MustCompile(`[^a-z0-9 -]`)
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(page, -1) {
		found = append(found, "#"+strings.ReplaceAll(mark.ReplaceAllString(strings.ToLower(heading[1]), ""), " ", "-"))
	}
	return found
}
