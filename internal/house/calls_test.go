package house

import (
	"go/ast"
	"go/constant"
	"go/token"
	"go/types"
	"slices"
	"strings"
	"testing"
)

// checkSleep returns every time.Sleep: waiting for a state is polling it with
// a deadline, and a test of timers has testing/synctest.
func checkSleep(s source) []string {
	var broken []string
	s.selectors("time", func(name string, p token.Pos) {
		if name == "Sleep" {
			broken = append(broken, s.at(p)+": time.Sleep: wait for the state, not for the clock")
		}
	})
	return broken
}

func TestNobodySleeps(t *testing.T) {
	for _, s := range sources(t) {
		report(t, checkSleep(s))
	}
}

func TestNobodySleepsFindsViolations(t *testing.T) {
	s := sample(t, "internal/lab/bad_test.go", `package lab

import "time"

func f() {
	time.Sleep(time.Second) // bad
	g := time.Sleep         // bad
	g(1)
	_ = time.Now()
}
`)
	wants(t, s, checkSleep(s))
}

// checkPrint returns every print to the process's own output. Only the command
// line talks to the user; everything else is given a writer or a logger.
func checkPrint(s source) []string {
	if within(s.pkg, []string{"cmd/", "internal/cli/"}) {
		return nil
	}
	var broken []string
	add := func(name string, p token.Pos) {
		broken = append(broken, s.at(p)+": "+name+": take a writer or a logger")
	}
	examples := exampleLines(s)
	s.selectors("fmt", func(name string, p token.Pos) {
		if strings.HasPrefix(name, "Print") && !examples[s.fset.Position(p).Line] {
			add("fmt."+name, p)
		}
	})
	s.selectors("log", func(name string, p token.Pos) { add("log."+name, p) })
	ast.Inspect(s.file, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			if id, ok := call.Fun.(*ast.Ident); ok && id.Obj == nil && (id.Name == "print" || id.Name == "println") {
				add(id.Name, call.Pos())
			}
		}
		return true
	})
	return broken
}

// exampleLines are the lines of testable examples, which print by design.
func exampleLines(s source) map[int]bool {
	lines := map[int]bool{}
	for _, d := range s.file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && s.test() && strings.HasPrefix(f.Name.Name, "Example") {
			for l := s.fset.Position(f.Pos()).Line; l <= s.fset.Position(f.End()).Line; l++ {
				lines[l] = true
			}
		}
	}
	return lines
}

func TestOnlyTheCommandLinePrints(t *testing.T) {
	for _, s := range sources(t) {
		report(t, checkPrint(s))
	}
}

func TestOnlyTheCommandLinePrintsFindsViolations(t *testing.T) {
	s := sample(t, "internal/agent/bad_test.go", `package agent

import (
	"fmt"
	"log"
	"os"
)

func f() {
	fmt.Printf("x") // bad
	fmt.Fprintf(os.Stderr, "x")
	log.Fatal("x") // bad
	println("x")   // bad
}

func Example() {
	fmt.Println("x")
}
`)
	wants(t, s, checkPrint(s))
	s.pkg = "internal/cli"
	if got := checkPrint(s); len(got) > 0 {
		t.Errorf("the command line may print: %q", got)
	}
}

const netlinkPath = "github.com/vishvananda/netlink"

// netlinkForbidden are the package functions that act on whatever namespace
// the calling thread is in: those that a Handle has as a method too, and the
// subscriptions that take no namespace.
func netlinkForbidden(pkg *types.Package) []string {
	names := []string{"LinkSubscribe", "AddrSubscribe", "RouteSubscribe", "NeighSubscribe", "NewHandle"}
	handle, ok := pkg.Scope().Lookup("Handle").(*types.TypeName)
	if !ok {
		return names
	}
	methods := types.NewMethodSet(types.NewPointer(handle.Type()))
	for i := range methods.Len() {
		name := methods.At(i).Obj().Name()
		if _, isFunc := pkg.Scope().Lookup(name).(*types.Func); isFunc {
			names = append(names, name)
		}
	}
	return names
}

// checkNetlink returns each use of a forbidden package function of netlink.
func checkNetlink(s source, forbidden []string) []string {
	var broken []string
	s.selectors(netlinkPath, func(name string, p token.Pos) {
		if slices.Contains(forbidden, name) {
			broken = append(broken, s.at(p)+": netlink."+name+" acts on the namespace of the thread: use a Handle made for the namespace")
		}
	})
	return broken
}

func TestNetlinkByHandleOnly(t *testing.T) {
	exports, err := exportData()
	if err != nil {
		t.Fatal(err)
	}
	if exports[netlinkPath] == "" {
		for _, s := range sources(t) {
			if s.importName(netlinkPath) != "" {
				t.Fatalf("%s imports netlink, and its export data is missing", s.name)
			}
		}
		return
	}
	user := sample(t, "internal/kernel/use.go", "package kernel\nimport _ \""+netlinkPath+"\"\n")
	pkg, _, err := checkTypes("kernel", user.fset, []*ast.File{user.file})
	if err != nil {
		t.Fatal(err)
	}
	forbidden := netlinkForbidden(pkg.Imports()[0])
	if len(forbidden) < 40 || !slices.Contains(forbidden, "LinkList") || slices.Contains(forbidden, "ParseAddr") {
		t.Fatalf("the list of forbidden functions is wrong: %q", forbidden)
	}
	for _, s := range sources(t) {
		report(t, checkNetlink(s, forbidden))
	}
}

func TestNetlinkByHandleOnlyFindsViolations(t *testing.T) {
	s := sample(t, "internal/kernel/bad.go", `package kernel

import nl "github.com/vishvananda/netlink"

func f(h *nl.Handle) {
	links, _ := nl.LinkList() // bad
	links, _ = h.LinkList()
	_ = nl.NewLinkAttrs()
}
`)
	wants(t, s, checkNetlink(s, []string{"LinkList"}))
}

// logCalls are the methods of *slog.Logger that take a message, with the place
// of the message among the arguments.
var logCalls = map[string]int{
	"Debug": 0, "Info": 0, "Warn": 0, "Error": 0,
	"DebugContext": 1, "InfoContext": 1, "WarnContext": 1, "ErrorContext": 1,
	"Log": 2, "LogAttrs": 2,
}

// checkLogs returns log messages that are not constants (values belong into
// key-values, so that one message can be searched for), every use of the
// process-wide logger, and every logger kept in a package variable.
func checkLogs(p typed) []string {
	var broken []string
	for _, s := range p.files {
		bad := func(at token.Pos, what string) { broken = append(broken, s.at(at)+": "+what) }
		ast.Inspect(s.file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			f, ok := p.info.Uses[sel.Sel].(*types.Func)
			if !ok || f.Pkg() == nil || f.Pkg().Path() != "log/slog" {
				return true
			}
			where, logs := logCalls[f.Name()]
			global := f.Signature().Recv() == nil
			if global && (logs || f.Name() == "Default" || f.Name() == "With") {
				bad(call.Pos(), "slog."+f.Name()+" uses the process-wide logger: take a *slog.Logger")
			}
			if logs && where < len(call.Args) {
				if v := p.info.Types[call.Args[where]].Value; v == nil || v.Kind() != constant.String {
					bad(call.Pos(), "the message is not a constant: put values into key-values")
				}
			}
			return true
		})
		for _, d := range s.file.Decls {
			gen, ok := d.(*ast.GenDecl)
			if !ok || gen.Tok != token.VAR {
				continue
			}
			for _, spec := range gen.Specs {
				for _, id := range spec.(*ast.ValueSpec).Names {
					if obj := p.info.Defs[id]; obj != nil && strings.HasSuffix(obj.Type().String(), "log/slog.Logger") {
						bad(id.Pos(), "a logger in a package variable: take it as an argument")
					}
				}
			}
		}
	}
	return broken
}

func TestLogMessagesAreConstant(t *testing.T) {
	for _, p := range typedPackages(t) {
		report(t, checkLogs(p))
	}
}

func TestLogMessagesAreConstantFindsViolations(t *testing.T) {
	p := typedSample(t, "internal/agent/bad.go", `package agent

import (
	"fmt"
	"log/slog"
)

const msg = "link gone"

var logger *slog.Logger // bad

func f(l *slog.Logger, name string) {
	l.Info("link gone", "link", name)
	l.Warn(msg + " again")
	l.Info("link " + name)               // bad
	l.Error(fmt.Sprintf("link %s", name)) // bad
	slog.Info("link gone")               // bad
	_ = slog.Default()                   // bad
	l.LogAttrs(nil, slog.LevelInfo, name) // bad
	_ = slog.New(slog.DiscardHandler)
}
`)
	wants(t, p.files[0], checkLogs(p))
}

// checkInit returns functions that run before main: who depends on what is to
// be read in constructors.
func checkInit(s source) []string {
	if s.generated() {
		return nil
	}
	var broken []string
	for _, d := range s.file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
			broken = append(broken, s.at(f.Pos())+": func init: wire things in constructors")
		}
	}
	return broken
}

func TestNothingRunsBeforeMain(t *testing.T) {
	for _, s := range sources(t) {
		report(t, checkInit(s))
	}
}

func TestNothingRunsBeforeMainFindsViolations(t *testing.T) {
	s := sample(t, "internal/agent/bad.go", `package agent

type x struct{}

func (x) init() {}

func init() {} // bad
`)
	wants(t, s, checkInit(s))
}
