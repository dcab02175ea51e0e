package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// module is the import path prefix of this code base.
const module = "culvert/"

// goPackage is what `go list -json` says of one package, as far as the rules
// need it. Paths of this module are kept whole; rel shortens them.
type goPackage struct {
	Dir, ImportPath, Name, Export      string
	GoFiles, TestGoFiles, XTestGoFiles []string
	Imports, TestImports, XTestImports []string
}

// rel is the path of a package inside the module: internal/plan.
func rel(importPath string) string { return strings.TrimPrefix(importPath, module) }

// allImports is what the package and its tests import, without doubles.
func (p goPackage) allImports() []string {
	all := slices.Concat(p.Imports, p.TestImports, p.XTestImports)
	slices.Sort(all)
	return slices.Compact(all)
}

// moduleRoot is the folder of go.mod, found upwards from the test's folder.
var moduleRoot = sync.OnceValue(func() string {
	dir, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			panic("no go.mod above the test's folder")
		}
		dir = up
	}
})

func goList(args ...string) ([]goPackage, error) {
	cmd := exec.Command("go", append([]string{"list", "-e"}, args...)...)
	cmd.Dir = moduleRoot()
	var out, talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &talk
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("go list %s: %w\n%s", strings.Join(args, " "), err, talk.String())
	}
	var pkgs []goPackage
	for dec := json.NewDecoder(&out); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs, nil
		} else if err != nil {
			return nil, fmt.Errorf("decode go list: %w", err)
		}
		pkgs = append(pkgs, p)
	}
}

var listModule = sync.OnceValues(func() ([]goPackage, error) {
	return goList("-json=Dir,ImportPath,Name,GoFiles,TestGoFiles,XTestGoFiles,Imports,TestImports,XTestImports", "./...")
})

// packages lists the packages of this module.
func packages(t *testing.T) []goPackage {
	t.Helper()
	pkgs, err := listModule()
	if err != nil {
		t.Fatal(err)
	}
	if len(pkgs) < 5 {
		t.Fatalf("go list found %d packages: the rules would look at nothing", len(pkgs))
	}
	return pkgs
}

// source is one parsed Go file.
type source struct {
	name  string // path from the module root
	pkg   string // rel path of its package's folder
	lines int
	fset  *token.FileSet
	file  *ast.File
}

func (s source) test() bool      { return strings.HasSuffix(s.name, "_test.go") }
func (s source) generated() bool { return ast.IsGenerated(s.file) }

// at prints a position as file:line.
func (s source) at(p token.Pos) string {
	return fmt.Sprintf("%s:%d", s.name, s.fset.Position(p).Line)
}

// importName is the name under which the file knows an import path; empty when
// it does not import it.
func (s source) importName(importPath string) string {
	for _, im := range s.file.Imports {
		if strings.Trim(im.Path.Value, `"`) != importPath {
			continue
		}
		if im.Name != nil {
			return im.Name.Name
		}
		base := path.Base(importPath)
		if base == "v2" {
			base = path.Base(path.Dir(importPath))
		}
		return base
	}
	return ""
}

// selectors reports each selector PKG.NAME of an imported package in the file.
func (s source) selectors(importPath string, f func(name string, at token.Pos)) {
	local := s.importName(importPath)
	if local == "" {
		return
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if id, ok := sel.X.(*ast.Ident); ok && id.Name == local && id.Obj == nil {
			f(sel.Sel.Name, sel.Pos())
		}
		return true
	})
}

func parseSource(name string, text []byte) (source, error) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, name, text, parser.ParseComments)
	if err != nil {
		return source{}, err
	}
	return source{
		name: name, pkg: path.Dir(name), lines: bytes.Count(text, []byte("\n")), fset: fset, file: file,
	}, nil
}

// sample parses a piece of Go that a checker's own test is about.
func sample(t *testing.T, name, text string) source {
	t.Helper()
	s, err := parseSource(name, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// walk calls f for each file that belongs to the project: no hidden folder (but
// for .ci), no bin, none of the folders that the go tool ignores.
func walk(f func(name string) error) error {
	root := moduleRoot()
	return filepath.WalkDir(root, func(full string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, full)
		base := d.Name()
		if d.IsDir() {
			hidden := strings.HasPrefix(base, ".") && base != ".ci" && name != "."
			if hidden || strings.HasPrefix(base, "_") || name == "bin" {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		return f(filepath.ToSlash(name))
	})
}

var parseModule = sync.OnceValues(func() ([]source, error) {
	var all []source
	err := walk(func(name string) error {
		if !strings.HasSuffix(name, ".go") || strings.Contains(name, "testdata/") {
			return nil
		}
		text, err := os.ReadFile(filepath.Join(moduleRoot(), name))
		if err != nil {
			return err
		}
		s, err := parseSource(name, text)
		if err != nil {
			return err
		}
		all = append(all, s)
		return nil
	})
	return all, err
})

// sources are all Go files of the module.
func sources(t *testing.T) []source {
	t.Helper()
	all, err := parseModule()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 10 {
		t.Fatalf("found %d Go files: the rules would look at nothing", len(all))
	}
	return all
}

// typed is one package of the module with its types.
type typed struct {
	pkg   string // rel path
	files []source
	info  *types.Info
	types *types.Package
}

var exportData = sync.OnceValues(func() (map[string]string, error) {
	pkgs, err := goList("-export", "-deps", "-json=ImportPath,Export", "./...",
		"fmt", "log/slog", "maps", "slices", "sort", "time")
	if err != nil {
		return nil, err
	}
	m := map[string]string{}
	for _, p := range pkgs {
		m[p.ImportPath] = p.Export
	}
	return m, nil
})

// checkTypes checks files of one package against the compiled packages they
// import.
func checkTypes(importPath string, fset *token.FileSet, files []*ast.File) (*types.Package, *types.Info, error) {
	exports, err := exportData()
	if err != nil {
		return nil, nil, err
	}
	lookup := func(p string) (io.ReadCloser, error) {
		if exports[p] == "" {
			return nil, fmt.Errorf("package %s does not compile", p)
		}
		return os.Open(exports[p])
	}
	info := &types.Info{
		Types: map[ast.Expr]types.TypeAndValue{},
		Uses:  map[*ast.Ident]types.Object{},
		Defs:  map[*ast.Ident]types.Object{},
	}
	conf := types.Config{Importer: importer.ForCompiler(fset, "gc", lookup)}
	p, err := conf.Check(importPath, fset, files, info)
	return p, info, err
}

func typedPackage(p goPackage) (typed, error) {
	fset := token.NewFileSet()
	out := typed{pkg: rel(p.ImportPath)}
	var files []*ast.File
	for _, base := range p.GoFiles {
		file, err := parser.ParseFile(fset, filepath.Join(p.Dir, base), nil, parser.ParseComments)
		if err != nil {
			return out, err
		}
		files = append(files, file)
		out.files = append(out.files, source{name: out.pkg + "/" + base, pkg: out.pkg, fset: fset, file: file})
	}
	var err error
	out.types, out.info, err = checkTypes(p.ImportPath, fset, files)
	return out, err
}

var typeModule = sync.OnceValues(func() ([]typed, error) {
	pkgs, err := listModule()
	if err != nil {
		return nil, err
	}
	var all []typed
	for _, p := range pkgs {
		if len(p.GoFiles) == 0 {
			continue
		}
		tp, err := typedPackage(p)
		if err != nil {
			return nil, fmt.Errorf("types of %s: %w", p.ImportPath, err)
		}
		all = append(all, tp)
	}
	return all, nil
})

// typedPackages are the production packages of the module with their types.
func typedPackages(t *testing.T) []typed {
	t.Helper()
	all, err := typeModule()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// typedSample checks a piece of Go for a checker's own test.
func typedSample(t *testing.T, name, text string) typed {
	t.Helper()
	s := sample(t, name, text)
	p, info, err := checkTypes(module+s.pkg, s.fset, []*ast.File{s.file})
	if err != nil {
		t.Fatal(err)
	}
	return typed{pkg: s.pkg, files: []source{s}, info: info, types: p}
}

// report fails the test with every place that breaks a rule.
func report(t *testing.T, broken []string) {
	t.Helper()
	slices.Sort(broken)
	for _, b := range slices.Compact(broken) {
		t.Error(b)
	}
}

// wants is the other half of each rule: in a sample the checker must find just
// the lines that carry a "bad" comment.
func wants(t *testing.T, s source, broken []string) {
	t.Helper()
	var want, got []string
	for _, group := range s.file.Comments {
		for _, c := range group.List {
			if strings.HasPrefix(c.Text, "// bad") {
				want = append(want, s.at(c.Pos()))
			}
		}
	}
	for _, b := range broken {
		got = append(got, strings.Join(strings.SplitN(b, ":", 3)[:2], ":"))
	}
	slices.Sort(want)
	slices.Sort(got)
	got = slices.Compact(got)
	if len(want) == 0 {
		t.Fatal("the sample breaks nothing")
	}
	if !slices.Equal(got, want) {
		t.Errorf("found %q, want %q\n%s", got, want, strings.Join(broken, "\n"))
	}
}
