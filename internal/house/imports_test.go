package house

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"
)

// pure lists the packages that think and touch nothing, each with all that it
// may import beside the standard library. A trailing slash means everything
// below.
var pure = map[string][]string{
	"internal/overlay":     {},
	"internal/packet":      {"internal/overlay"},
	"internal/answer":      {"internal/overlay", "internal/packet"},
	"internal/hoststate":   {"internal/overlay"},
	"internal/plan":        {"internal/overlay", "internal/hoststate"},
	"internal/api":         {"internal/overlay", "internal/api/culvertv1", "google.golang.org/protobuf/", "github.com/goccy/go-yaml/"},
	"internal/agentcore":   {"internal/overlay", "internal/packet", "internal/answer", "internal/hoststate", "internal/plan", "internal/api", "internal/api/culvertv1", "github.com/tidwall/btree", "google.golang.org/protobuf/"},
	"internal/managercore": {"internal/overlay", "internal/packet", "internal/hoststate", "internal/plan", "internal/api", "internal/api/culvertv1", "github.com/tidwall/btree", "google.golang.org/protobuf/"},
}

// impureStd are the parts of the standard library that a pure package may not
// import: they read a clock, chance, a file, a socket, or bring a second
// thread. net/netip is a plain value and allowed.
var impureStd = []string{
	"context", "crypto/rand", "crypto/tls", "io/ioutil", "log", "log/", "math/rand", "math/rand/",
	"net", "net/", "os", "os/", "plugin", "runtime", "runtime/", "sync", "sync/", "syscall", "testing", "testing/", "unsafe",
}

// fences say which packages alone may import something. A trailing slash means
// everything below; *test packages and test/ may import anything.
var fences = []struct {
	what    []string
	rooms   []string
	because string
}{
	{[]string{"github.com/vishvananda/netlink/", "github.com/mdlayher/netlink/", "github.com/google/nftables/", "golang.org/x/sys/unix"},
		[]string{"internal/kernel/", "internal/bpf/", "internal/snoop/", "internal/lab/", "internal/gateway/", "internal/netnstest/"},
		"the kernel is touched in these rooms only"},
	{[]string{"github.com/cilium/"}, []string{"internal/bpf/", "internal/kernel/"}, "programs are loaded in one place"},
	{[]string{"go.etcd.io/"}, []string{"internal/store/etcd/"}, "the store's make is nobody else's business"},
	{[]string{"libvirt.org/", "github.com/digitalocean/go-libvirt/"}, []string{"internal/libvirt/"}, "hypervisors are known in one place"},
	{[]string{"github.com/spf13/"}, []string{"internal/cli/"}, "the command line framework stays in the command line"},
}

var (
	agentSide   = []string{"internal/agent/", "internal/agentcore/", "internal/kernel/", "internal/gateway/", "internal/bpf/", "internal/snoop/", "internal/libvirt/"}
	managerSide = []string{"internal/manager/", "internal/managercore/", "internal/store/", "internal/apiserver/", "internal/console/"}
	lazyNames   = []string{"util", "utils", "common", "helpers", "helper", "types", "model", "models", "misc", "base", "shared"}
)

// within tells whether a path is one of the entries, or below one that ends in
// a slash.
func within(p string, entries []string) bool {
	return slices.ContainsFunc(entries, func(e string) bool {
		return p == strings.TrimSuffix(e, "/") || strings.HasSuffix(e, "/") && strings.HasPrefix(p, e)
	})
}

// testing support: packages named *test, the simulator, the house rules and
// the stories. They may import anything, and no production package imports
// them.
func support(pkg string) bool {
	return strings.HasSuffix(path.Base(pkg), "test") || within(pkg, []string{"internal/sim/", "internal/house/", "test/"})
}

func standard(importPath string) bool {
	first, _, _ := strings.Cut(importPath, "/")
	return !strings.Contains(first, ".") && !strings.HasPrefix(importPath, module)
}

// checkImports returns every import that breaks a rule.
func checkImports(pkgs []goPackage) []string {
	var broken []string
	for _, p := range pkgs {
		name := rel(p.ImportPath)
		bad := func(format string, args ...any) {
			broken = append(broken, name+": "+fmt.Sprintf(format, args...))
		}
		if slices.Contains(lazyNames, path.Base(name)) {
			bad("a package is named after what it does, not %q", path.Base(name))
		}
		if allowed, ok := pure[name]; ok {
			for _, im := range p.Imports {
				if standard(im) {
					if within(im, impureStd) && im != "net/netip" {
						bad("is pure and imports %s", im)
					}
				} else if !within(rel(im), allowed) {
					bad("is pure and imports %s; it may import %s", rel(im), strings.Join(allowed, ", "))
				}
			}
		}
		if support(name) {
			continue
		}
		for _, im := range p.allImports() {
			for _, f := range fences {
				if within(im, f.what) && !within(name, f.rooms) {
					bad("imports %s: %s (%s)", im, f.because, strings.Join(f.rooms, " "))
				}
			}
		}
		for _, im := range p.Imports {
			if within(im, []string{"testing/"}) || strings.HasPrefix(im, module) && support(rel(im)) {
				bad("is production and imports %s", rel(im))
			}
		}
	}
	return append(broken, checkSides(pkgs)...)
}

// checkSides follows imports to their end: neither side may reach the other
// through any number of packages.
func checkSides(pkgs []goPackage) []string {
	imports := map[string][]string{}
	for _, p := range pkgs {
		for _, im := range p.Imports {
			if strings.HasPrefix(im, module) {
				imports[rel(p.ImportPath)] = append(imports[rel(p.ImportPath)], rel(im))
			}
		}
	}
	var broken []string
	for from := range imports {
		var other []string
		switch {
		case support(from):
			continue
		case within(from, agentSide):
			other = managerSide
		case within(from, managerSide):
			other = agentSide
		default:
			continue
		}
		seen := map[string]bool{}
		var visit func(p string, way []string)
		visit = func(p string, way []string) {
			if seen[p] {
				return
			}
			seen[p] = true
			if within(p, other) {
				broken = append(broken, fmt.Sprintf("%s: reaches the other side: %s", from, strings.Join(way, " -> ")))
				return
			}
			for _, im := range imports[p] {
				visit(im, append(slices.Clone(way), im))
			}
		}
		visit(from, []string{from})
	}
	return broken
}

func TestImports(t *testing.T) {
	report(t, checkImports(packages(t)))
}

func TestImportsFindsViolations(t *testing.T) {
	for _, c := range []struct {
		pkg, imports, want string
		test               bool
	}{
		{"internal/overlay", "culvert/internal/hoststate", "is pure and imports internal/hoststate", false},
		{"internal/overlay", "github.com/tidwall/btree", "is pure", false},
		{"internal/hoststate", "culvert/internal/plan", "is pure", false},
		{"internal/plan", "net", "is pure and imports net", false},
		{"internal/agentcore", "sync/atomic", "is pure", false},
		{"internal/agentcore", "culvert/internal/kernel", "is pure", false},
		{"internal/managercore", "math/rand/v2", "is pure", false},
		{"internal/managercore", "culvert/internal/agentcore", "is pure", false},
		{"internal/api", "connectrpc.com/connect/v2", "is pure", false},
		{"internal/agent", "github.com/vishvananda/netlink", "the kernel is touched", false},
		{"internal/agent", "golang.org/x/sys/unix", "the kernel is touched", true},
		{"internal/agent", "github.com/cilium/ebpf", "programs are loaded in one place", false},
		{"internal/manager", "go.etcd.io/etcd/client/v3", "the store's make", false},
		{"internal/store", "go.etcd.io/etcd/server/v3/embed", "the store's make", true},
		{"internal/lab", "github.com/spf13/cobra", "command line", false},
		{"internal/agent", "culvert/internal/store", "reaches the other side", false},
		{"internal/manager", "culvert/internal/kernel", "reaches the other side", false},
		{"internal/agent", "testing", "is production and imports testing", false},
		{"internal/agent", "testing/fstest", "is production", false},
		{"internal/lab", "culvert/internal/netnstest", "is production", false},
		{"internal/cli", "culvert/internal/sim", "is production", false},
		{"internal/util", "fmt", "named after what it does", false},
	} {
		p := goPackage{ImportPath: module + c.pkg}
		if c.test {
			p.TestImports = []string{c.imports}
		} else {
			p.Imports = []string{c.imports}
		}
		if got := strings.Join(checkImports([]goPackage{p}), "\n"); !strings.Contains(got, c.want) {
			t.Errorf("%s importing %s: got %q, want %q", c.pkg, c.imports, got, c.want)
		}
	}
	way := []goPackage{
		{ImportPath: module + "internal/agent", Imports: []string{module + "internal/lab"}},
		{ImportPath: module + "internal/lab", Imports: []string{module + "internal/manager"}},
	}
	if got := strings.Join(checkImports(way), "\n"); !strings.Contains(got, "agent -> internal/lab -> internal/manager") {
		t.Errorf("the long way round is not seen: %q", got)
	}
}

func TestImportsAllowsWhatIsAllowed(t *testing.T) {
	fine := []goPackage{
		{ImportPath: module + "internal/plan", Imports: []string{"net/netip", "slices", module + "internal/overlay"}, TestImports: []string{"testing", "os"}},
		{ImportPath: module + "internal/kernel", Imports: []string{"github.com/vishvananda/netlink/nl", "golang.org/x/sys/unix"}},
		{ImportPath: module + "internal/kernel/kerneltest", Imports: []string{"testing", module + "internal/hoststate"}},
		{ImportPath: module + "internal/store/etcd", Imports: []string{"go.etcd.io/etcd/server/v3/embed"}},
		{ImportPath: module + "internal/sim", Imports: []string{module + "internal/kernel/kerneltest", module + "internal/agentcore", module + "internal/managercore"}},
		{ImportPath: module + "cmd/culvert", Imports: []string{"os", module + "internal/agent", module + "internal/manager"}},
	}
	if got := checkImports(fine); len(got) > 0 {
		t.Errorf("%q", got)
	}
}
