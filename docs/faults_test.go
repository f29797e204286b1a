// Package docs has no code: its test compares the page of the faults with the tests that cite them.
package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// Every number that a test cites has its row, and every test that a row names is there, in the tier that the row says, and cites the number.
func TestFaults(t *testing.T) {
	tests, cited := citations(t)
	page := rows(t)
	for number, where := range cited {
		if _, there := page[number]; !there {
			t.Errorf("%s: there is no fault %d", where, number)
		}
	}
	for number := range len(page) {
		if _, there := page[number+1]; !there {
			t.Errorf("no row has number %d", number+1)
		}
	}
	for number, names := range page {
		for _, name := range names {
			if numbers, there := tests[name]; !there {
				t.Errorf("fault %d: there is no test %s", number, name)
			} else if !numbers[number] {
				t.Errorf("fault %d: %s does not cite it", number, name)
			}
		}
	}
}

// rows are the tests that each row of the page names, as "tier: folder Test".
func rows(t *testing.T) map[int][]string {
	t.Helper()
	page, err := os.ReadFile("faults.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile(`(?m)^\| (\d+) \|.*\| (.*) \|$`)
	found := map[int][]string{}
	for _, cells := range row.FindAllStringSubmatch(string(page), -1) {
		number, _ := strconv.Atoi(cells[1])
		if _, twice := found[number]; twice {
			t.Errorf("two rows have number %d", number)
		}
		found[number] = named(t, cells[2])
	}
	return found
}

// named are the tests of a cell; "none" has none.
func named(t *testing.T, cell string) (names []string) {
	t.Helper()
	word := regexp.MustCompile("(everywhere|kernel|boot): |`([a-z0-9/]+)` |Test\\w+|[^ ,;]+")
	var tier, folder string
	for _, part := range word.FindAllStringSubmatch(cell, -1) {
		switch {
		case part[1] != "":
			tier = part[1]
		case part[2] != "":
			folder = part[2]
		case strings.HasPrefix(part[0], "Test"):
			names = append(names, tier+": "+folder+" "+part[0])
		case cell != "none":
			t.Errorf("what is %q in %q?", part[0], cell)
		}
	}
	return names
}

// declaration is one of a test file: what it cites and which names it uses.
type declaration struct {
	cites []int
	uses  map[string]bool
}

// folder has what the test files of a folder declare, by name, and the tier of each test.
type folder struct {
	declared map[string][]*declaration
	tiers    map[string]string
}

// citations are the numbers that each test cites, itself or in what it uses of its package, and where each number is cited.
func citations(t *testing.T) (tests map[string]map[int]bool, cited map[int]string) {
	t.Helper()
	folders := map[string]*folder{}
	cited = map[int]string{}
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && entry.Name() == ".git" {
			return fs.SkipDir
		}
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		name, _ := filepath.Rel("..", filepath.Dir(path))
		if folders[name] == nil {
			folders[name] = &folder{map[string][]*declaration{}, map[string]string{}}
		}
		return folders[name].read(path, cited)
	})
	if err != nil {
		t.Fatal(err)
	}
	tests = map[string]map[int]bool{}
	for name, f := range folders {
		for test, tier := range f.tiers {
			reached := map[int]bool{}
			f.reach(test, map[string]bool{}, reached)
			tests[tier+": "+name+" "+test] = reached
		}
	}
	return tests, cited
}

func (f *folder) read(path string, cited map[int]string) error {
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, nil, parser.ParseComments)
	if err != nil {
		return err
	}
	for _, comment := range file.Comments {
		for _, number := range numbers(comment.Text()) {
			cited[number] = files.Position(comment.Pos()).String()
		}
	}
	for name, declared := range declarations(files, file) {
		f.declared[name] = append(f.declared[name], declared...)
		if strings.HasPrefix(name, "Test") {
			f.tiers[name] = tier(file)
		}
	}
	return nil
}

// declarations are those of a file by name, each with the comments on it and in it.
func declarations(files *token.FileSet, file *ast.File) map[string][]*declaration {
	found := map[string][]*declaration{}
	comments := file.Comments
	for _, node := range file.Decls {
		d := &declaration{uses: map[string]bool{}}
		end := files.Position(node.End()).Line
		for len(comments) > 0 && files.Position(comments[0].Pos()).Line <= end {
			d.cites = append(d.cites, numbers(comments[0].Text())...)
			comments = comments[1:]
		}
		ast.Inspect(node, func(part ast.Node) bool {
			if name, ok := part.(*ast.Ident); ok {
				d.uses[name.Name] = true
			}
			return true
		})
		for _, name := range namesOf(node) {
			found[name] = append(found[name], d)
		}
	}
	return found
}

func namesOf(node ast.Decl) (names []string) {
	switch node := node.(type) {
	case *ast.FuncDecl:
		return []string{node.Name.Name}
	case *ast.GenDecl:
		for _, spec := range node.Specs {
			if values, ok := spec.(*ast.ValueSpec); ok {
				for _, name := range values.Names {
					names = append(names, name.Name)
				}
			}
		}
	}
	return names
}

// tier is what runs the file: "everywhere", or what its build constraint says.
func tier(file *ast.File) string {
	for _, comment := range file.Comments {
		if constraint, ok := strings.CutPrefix(comment.List[0].Text, "//go:build "); ok && comment.Pos() < file.Package {
			return constraint
		}
	}
	return "everywhere"
}

// numbers are those that a comment cites: "fault 7", "faults 1, 12 and 22 to 25".
func numbers(comment string) (found []int) {
	words := strings.Join(strings.Fields(comment), " ")
	for _, list := range regexp.MustCompile(`\b[Ff]aults? (\d+(?:(?:, | and | to )\d+)*)`).FindAllStringSubmatch(words, -1) {
		through := false
		for _, word := range regexp.MustCompile(`\d+|to`).FindAllString(list[1], -1) {
			number, err := strconv.Atoi(word)
			for through && found[len(found)-1] < number-1 {
				found = append(found, found[len(found)-1]+1)
			}
			if through = err != nil; !through {
				found = append(found, number)
			}
		}
	}
	return found
}

// reach adds what a declaration cites, and what those cite that it uses.
func (f *folder) reach(name string, seen map[string]bool, cites map[int]bool) {
	if seen[name] {
		return
	}
	seen[name] = true
	for _, d := range f.declared[name] {
		for _, number := range d.cites {
			cites[number] = true
		}
		for used := range d.uses {
			f.reach(used, seen, cites)
		}
	}
}
