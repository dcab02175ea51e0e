package managercore

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Whatever comes and goes: a host whose tunnel end point answers is never
// declared dead, and at rest just those are dead that are.
func TestNoVerdictWhileItAnswers(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		f := newFleet(t, rapid.IntRange(2, 12).Draw(rt, "hosts"))
		answered := map[string]Time{}
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			m := f.hosts[rapid.IntRange(0, len(f.hosts)-1).Draw(rt, "host")]
			switch rapid.IntRange(0, 4).Draw(rt, "what") {
			case 0:
				m.powerOff()
			case 1:
				f.killAgent(m)
			case 2:
				f.attach(m)
				f.inventory(m)
			case 3:
				m.agent = false
			case 4:
				f.load()
				for _, x := range f.hosts {
					if x.agent {
						f.attach(x)
						f.inventory(x)
					}
				}
			}
			for end := f.now + Time(rapid.IntRange(1, 3000).Draw(rt, "ms"))*msec; f.now < end; {
				for _, x := range f.hosts {
					if x.kernel {
						answered[x.name] = f.now
					}
				}
				f.run(20 * msec)
				for name, at := range f.died {
					if at == f.now-5*msec && answered[name] > at-death/4 {
						rt.Fatalf("%s was declared dead at %d, it answered at %d", name, at/msec, answered[name]/msec)
					}
				}
			}
		}
		for _, m := range f.hosts[1:] {
			if m.kernel && !m.agent {
				f.attach(m)
				f.inventory(m)
			}
		}
		f.attach(f.hosts[0])
		f.inventory(f.hosts[0])
		f.run(60 * second)
		var want []string
		for _, m := range f.hosts {
			if !m.kernel {
				want = append(want, m.name)
			}
		}
		if got := f.dead(); len(want) < 3 && len(f.hosts)-len(want) > 0 && !slices.Equal(got, want) {
			rt.Fatalf("at rest %v are dead, want %v", got, want)
		}
		if f.c.Stats().Defects != 0 {
			rt.Fatalf("%d defects", f.c.Stats().Defects)
		}
	})
}
