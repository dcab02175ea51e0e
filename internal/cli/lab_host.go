//go:build linux

package cli

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"culvert/internal/api"
	"culvert/internal/lab"
)

// hostCommand is the verbs that act on a whole host, not on its daemon alone.
func (s *labSession) hostCommand() *cobra.Command {
	c := &cobra.Command{Use: "host", Short: "Let hosts of the lab fail and come back", RunE: group, Example: "  sudo culvert lab host fail h3"}
	c.AddCommand(
		s.hostVerb("fail", "failed: its agent is killed and its link is down", "Let hosts fail at once, as by a power cut",
			func(ctx context.Context, l *lab.Lab, hosts []string) ([]bool, error) {
				return slices.Repeat([]bool{true}, len(hosts)), l.FailHosts(ctx, nil, hosts...)
			}),
		s.hostVerb("recover", "recovered", "Give hosts that failed their links and agents back", recoverHosts),
	)
	return c
}

func recoverHosts(ctx context.Context, l *lab.Lab, hosts []string) (changed []bool, err error) {
	for _, h := range hosts {
		started, err := l.RecoverHost(ctx, h)
		if err != nil {
			return nil, err
		}
		changed = append(changed, started)
	}
	return changed, nil
}

func (s *labSession) hostVerb(word, past, short string, act func(context.Context, *lab.Lab, []string) ([]bool, error)) *cobra.Command {
	args := func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usage(c, "HOST is missing")
		}
		return nil
	}
	return verb(word+" HOST...", short, "  sudo culvert lab host "+word+" h3\n  sudo culvert lab host "+word+" h2 h3", args,
		func(c *cobra.Command, hosts []string) error {
			l, err := s.lab()
			if err != nil {
				return err
			}
			changed, err := act(c.Context(), l, hosts)
			if err != nil {
				return err
			}
			var text strings.Builder
			for i, h := range hosts {
				did := past
				if !changed[i] {
					did = "is well already (unchanged)"
				}
				text.WriteString("host " + h + " " + did + "\n")
			}
			return s.say(c, text.String(), labChange{api.Version, "LabHosts", strings.Join(hosts, " "), slices.Contains(changed, true)})
		})
}
