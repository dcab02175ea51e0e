//go:build !linux

package cli

import (
	"github.com/spf13/cobra"

	"culvert/internal/api"
)

// labCommand refuses: a lab is made of Linux network namespaces.
func labCommand(*Env) *cobra.Command {
	return &cobra.Command{
		Use: "lab", Short: "A data centre on this machine, to try things in (Linux only)",
		RunE: func(*cobra.Command, []string) error {
			return api.Refuse(api.CodeLater, "no lab was built", "this build has the client verbs only", "use the build for Linux")
		},
	}
}
