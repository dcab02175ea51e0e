package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

func (s *session) schemaCommand() *cobra.Command {
	return verb("schema KIND", "Print the fields of a kind of document", "  culvert schema network\n  culvert schema port -o json", exactly("KIND"),
		func(_ *cobra.Command, args []string) error {
			if err := s.check(); err != nil {
				return err
			}
			kind, err := api.ParseKind("KIND", strings.ToLower(args[0]))
			if err != nil {
				return err
			}
			if s.output == "json" {
				return writeJSON(s.env.Stdout, api.JSONSchema(kind))
			}
			return s.printSchema(kind)
		})
}

func (s *session) printSchema(kind overlay.Kind) error {
	rows := [][]string{{"FIELD", "TYPE", "MEANING"}}
	for _, f := range api.Fields(kind) {
		rows = append(rows, []string{f.Path, f.Type, f.Meaning})
	}
	if err := table(s.env.Stdout, rows); err != nil {
		return err
	}
	if ex := api.Example(kind); ex != "" {
		_, err := fmt.Fprintf(s.env.Stdout, "\nExample:\n%s", ex)
		return err
	}
	return nil
}
