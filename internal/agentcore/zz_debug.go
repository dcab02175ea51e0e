package agentcore

import "fmt"

// DebugOpen is temporary.
func (c *Core) DebugOpen() (out []string) {
	for k, rs := range c.global.rows {
		if rs.open {
			out = append(out, fmt.Sprintf("global %v %+v", k, *rs))
		}
	}
	for _, n := range c.sortedNets() {
		if n.open {
			out = append(out, fmt.Sprintf("net %v open gen %d dirty %t flying %d wait %t retry %d live %t bridge %d vxlan %d taps %d", n.uid, n.gen, n.dirty, n.flying, n.waitLinks, n.retryAt, n.live(), n.bridge, n.vxlan, len(n.taps)))
		}
		for k, rs := range n.rows.rows {
			if rs.open {
				out = append(out, fmt.Sprintf("net %v live %t vxlan %d serving %t tablesRead %t: %v %+v", n.uid, n.live(), n.vxlan, n.serving, n.tablesRead, k, *rs))
			}
		}
	}
	return append(out, fmt.Sprintf("gens %+v first %d", c.work.gens, c.work.first))
}
