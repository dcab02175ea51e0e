package house

import (
	"go/ast"
	"go/token"
	"go/types"
	"slices"
	"strings"
	"testing"
)

// clocks are the parts of package time that read the clock or wait for it. A
// pure package takes the time as an argument.
var clocks = []string{"Now", "Since", "Until", "After", "AfterFunc", "Tick", "NewTicker", "NewTimer", "Sleep", "Local", "LoadLocation"}

// checkPurity returns what a pure package does that only a driver may do. What
// it imports is checked by checkImports.
func checkPurity(s source) []string {
	var broken []string
	bad := func(p token.Pos, what string) {
		broken = append(broken, s.at(p)+": pure code has "+what)
	}
	s.selectors("time", func(name string, p token.Pos) {
		if slices.Contains(clocks, name) {
			bad(p, "time."+name)
		}
	})
	s.selectors("fmt", func(name string, p token.Pos) {
		if strings.HasPrefix(name, "Print") || strings.HasPrefix(name, "Scan") {
			bad(p, "fmt."+name)
		}
	})
	ast.Inspect(s.file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			bad(n.Pos(), "a goroutine")
		case *ast.ChanType:
			bad(n.Pos(), "a channel")
		case *ast.SendStmt:
			bad(n.Pos(), "a channel send")
		case *ast.SelectStmt:
			bad(n.Pos(), "a select")
		case *ast.UnaryExpr:
			if n.Op == token.ARROW {
				bad(n.Pos(), "a channel receive")
			}
		}
		return true
	})
	return broken
}

func isPure(pkg string) bool { _, ok := pure[pkg]; return ok }

func TestCoresArePure(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range sources(t) {
		if isPure(s.pkg) && !s.test() && !s.generated() {
			seen[s.pkg] = true
			report(t, checkPurity(s))
		}
	}
	for _, p := range packages(t) {
		if isPure(rel(p.ImportPath)) && !seen[rel(p.ImportPath)] {
			t.Errorf("%s was not looked at", p.ImportPath)
		}
	}
	if !seen["internal/overlay"] {
		t.Error("internal/overlay was not looked at")
	}
}

func TestCoresArePureFindsViolations(t *testing.T) {
	s := sample(t, "internal/plan/bad.go", `package plan

import (
	"fmt"
	clock "time"
)

type q struct {
	c chan int // bad
	d clock.Duration
}

func f(x q) {
	_ = clock.Now()            // bad
	<-clock.After(1)           // bad
	go f(x)                    // bad
	x.c <- 1                   // bad
	fmt.Println()              // bad
	_ = fmt.Sprint(clock.Second)
	select {                   // bad
	default:
	}
	var time struct{ Now func() }
	time.Now()
}
`)
	wants(t, s, checkPurity(s))
}

// checkMapOrder returns every loop over a map in a pure package of which
// nothing says that the order does not matter. A loop is in order when all it
// does is collect into slices, each of which is sorted later in the same
// block, or when its line, or the one above, says "// order-free: REASON".
// maps.Keys, Values and All are loops too, unless slices.Sorted takes them.
func checkMapOrder(p typed) []string {
	var broken []string
	for _, s := range p.files {
		if s.generated() {
			continue
		}
		reasons := orderFree(s)
		excused := func(n token.Pos) bool {
			line := s.fset.Position(n).Line
			return reasons[line] || reasons[line-1]
		}
		sorted := map[ast.Node]bool{}
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.BlockStmt:
				markSorted(p, n.List, sorted)
			case *ast.CaseClause:
				markSorted(p, n.Body, sorted)
			case *ast.RangeStmt:
				if isMap(p, n.X) && !sorted[n] && !excused(n.Pos()) {
					broken = append(broken, s.at(n.Pos())+": a loop over a map whose order may show: sort what it collects, or say // order-free: REASON")
				}
			case *ast.CallExpr:
				if name := calledIn(p, n, "slices"); strings.HasPrefix(name, "Sorted") && len(n.Args) > 0 {
					sorted[n.Args[0]] = true
				}
				switch calledIn(p, n, "maps") {
				case "Keys", "Values", "All":
					if !sorted[n] && !excused(n.Pos()) {
						broken = append(broken, s.at(n.Pos())+": the order of a map may show: slices.Sorted, or say // order-free: REASON")
					}
				}
			}
			return true
		})
	}
	return broken
}

// orderFree are the lines that carry an order-free comment with a reason of at
// least two words.
func orderFree(s source) map[int]bool {
	lines := map[int]bool{}
	for _, group := range s.file.Comments {
		for _, c := range group.List {
			_, reason, ok := strings.Cut(c.Text, "order-free:")
			if ok && len(strings.Fields(reason)) >= 2 {
				lines[s.fset.Position(c.Pos()).Line] = true
			}
		}
	}
	return lines
}

func isMap(p typed, x ast.Expr) bool {
	tv, ok := p.info.Types[x]
	if !ok {
		return false
	}
	if param, ok := types.Unalias(tv.Type).(*types.TypeParam); ok {
		return typeSetHasMap(param)
	}
	_, ok = tv.Type.Underlying().(*types.Map)
	return ok
}

func typeSetHasMap(param *types.TypeParam) bool {
	iface, ok := param.Constraint().Underlying().(*types.Interface)
	if !ok {
		return false
	}
	for e := range iface.EmbeddedTypes() {
		if u, ok := e.(*types.Union); ok {
			for term := range u.Terms() {
				if _, ok := term.Type().Underlying().(*types.Map); ok {
					return true
				}
			}
		}
	}
	return false
}

// calledIn is the name of the called function when it belongs to the named
// package of the standard library.
func calledIn(p typed, call *ast.CallExpr, pkgPath string) string {
	fun := ast.Unparen(call.Fun)
	if ix, ok := fun.(*ast.IndexExpr); ok {
		fun = ix.X
	}
	sel, ok := fun.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	f, ok := p.info.Uses[sel.Sel].(*types.Func)
	if !ok || f.Pkg() == nil || f.Pkg().Path() != pkgPath || f.Signature().Recv() != nil {
		return ""
	}
	return f.Name()
}

// markSorted marks the loops of one block that only collect into slices which
// a later statement of that block sorts.
func markSorted(p typed, block []ast.Stmt, sorted map[ast.Node]bool) {
	for i, st := range block {
		loop, ok := st.(*ast.RangeStmt)
		if !ok || !isMap(p, loop.X) {
			continue
		}
		into, only := collects(p, loop.Body.List)
		if !only || len(into) == 0 {
			continue
		}
		all := true
		for _, slice := range into {
			all = all && sortsLater(p, block[i+1:], slice)
		}
		sorted[loop] = all
	}
}

// collects names the slices that statements append to; only is false when they
// do anything else. Conditions and loops inside are followed.
func collects(p typed, body []ast.Stmt) (into []string, only bool) {
	for _, st := range body {
		switch st := st.(type) {
		case *ast.AssignStmt:
			if len(st.Lhs) != 1 || len(st.Rhs) != 1 {
				return nil, false
			}
			call, ok := st.Rhs[0].(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return nil, false
			}
			id, ok := call.Fun.(*ast.Ident)
			target := types.ExprString(st.Lhs[0])
			if !ok || id.Name != "append" || types.ExprString(call.Args[0]) != target {
				return nil, false
			}
			into = append(into, target)
		case *ast.IfStmt:
			more, fine := collects(p, st.Body.List)
			if !fine || st.Else != nil || st.Init != nil {
				return nil, false
			}
			into = append(into, more...)
		case *ast.BranchStmt:
			if st.Tok != token.CONTINUE {
				return nil, false
			}
		default:
			return nil, false
		}
	}
	return into, true
}

// sortsLater tells whether a statement sorts the slice before anything else
// is done with it.
func sortsLater(p typed, rest []ast.Stmt, slice string) bool {
	for _, st := range rest {
		es, ok := st.(*ast.ExprStmt)
		if ok {
			if call, ok := es.X.(*ast.CallExpr); ok && len(call.Args) > 0 && types.ExprString(call.Args[0]) == slice {
				name := calledIn(p, call, "slices")
				if strings.HasPrefix(name, "Sort") {
					return true
				}
				switch calledIn(p, call, "sort") {
				case "Slice", "SliceStable", "Strings", "Ints", "Sort", "Stable":
					return true
				}
			}
		}
		if mentions(st, slice) {
			return false
		}
	}
	return false
}

func mentions(st ast.Stmt, slice string) bool {
	found := false
	ast.Inspect(st, func(n ast.Node) bool {
		if x, ok := n.(ast.Expr); ok && types.ExprString(x) == slice {
			found = true
		}
		return !found
	})
	return found
}

func TestMapOrderNeverShows(t *testing.T) {
	looked := 0
	for _, p := range typedPackages(t) {
		if isPure(p.pkg) {
			looked++
			report(t, checkMapOrder(p))
		}
	}
	if looked == 0 {
		t.Error("no pure package was looked at")
	}
}

func TestMapOrderFindsViolations(t *testing.T) {
	p := typedSample(t, "internal/plan/bad.go", `package plan

import (
	"maps"
	"slices"
	"sort"
)

type set map[string]int

func f(m set, g map[int]bool) (out []string, n int) {
	for k := range m { // bad
		out = append(out, k)
	}
	var a, b []string
	for k, v := range m {
		if v > 2 {
			a = append(a, k)
			continue
		}
		a = append(a, k)
	}
	slices.Sort(a)
	for k := range m { // bad
		b = append(b, k)
	}
	out = append(out, b...)
	slices.Sort(b)
	for k := range m {
		out = append(out, k)
	}
	sort.Slice(out, func(i, j int) bool { return out[i] < out[j] })
	for range g { // order-free: a count has no order
		n++
	}
	// order-free: the greatest is the greatest
	for k := range g {
		n = max(n, k)
	}
	for k := range g { // bad
		n = k
	}
	for k := range g { // bad order-free:
		n = k
	}
	for k := range maps.Keys(m) { // bad
		out = append(out, k)
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k)
	}
	out = slices.Collect(maps.Keys(m)) // bad
	switch n {
	case 1:
		for k := range m {
			out = append(out, k)
		}
		slices.SortFunc(out, func(a, b string) int { return len(a) - len(b) })
	}
	return out, n
}

func generic[M ~map[K]V, K comparable, V any](m M) (last K) {
	for k := range m { // bad
		last = k
	}
	return last
}
`)
	wants(t, p.files[0], checkMapOrder(p))
}
