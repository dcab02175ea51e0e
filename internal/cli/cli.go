// Package cli is the command line: a table of commands, the environment they
// run in, and printers. Data goes to stdout, talk to stderr; every error has
// its four parts and its exit code. It decides nothing about networks: client
// verbs speak to a manager or to the agent of this host, and the daemons are
// functions that main passes in.
package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"culvert/internal/api"
	"culvert/internal/api/client"
)

// Env is all that the commands know of the world around them.
type Env struct {
	Stdout io.Writer
	Stderr io.Writer
	Stdin  io.Reader
	Getenv func(string) string
	Now    func() time.Time
	// Version is what `culvert version` prints.
	Version string
	// LabConfig is the client configuration of the default lab; empty means
	// client.LabConfig.
	LabConfig string

	// The daemons, which run until ctx ends, and the verbs that make a cluster
	// or enter one. A nil function means that this build cannot do it.
	RunManager func(ctx context.Context, o ManagerOptions) error
	RunAgent   func(ctx context.Context, o AgentOptions) error
	Init       func(ctx context.Context, o InitOptions) error
	Join       func(ctx context.Context, o JoinOptions) error
}

// Main runs one command and returns its exit code. args has no program name.
func Main(ctx context.Context, env *Env, args []string) int {
	root := Root(env)
	root.SetArgs(args)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	root.SetIn(env.Stdin)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return int(api.ExitOK)
	}
	var exit exitError
	if errors.As(err, &exit) {
		return int(exit)
	}
	if errors.Is(err, context.Canceled) {
		return 130 // as a shell reports a command that SIGINT ended
	}
	asJSON := false
	if f := root.PersistentFlags().Lookup("output"); f != nil {
		asJSON = f.Value.String() == "json"
	}
	ref := refusalOf(err)
	printRefusal(env.Stderr, ref, asJSON)
	return int(ref.Exit())
}

// Root is the whole tree of commands. Documentation is made from it too.
func Root(env *Env) *cobra.Command {
	root := &cobra.Command{
		Use:           "culvert",
		Short:         "Networks for virtual machines over plain Linux VXLAN",
		Long:          "Culvert makes networks for virtual machines over plain Linux VXLAN.\nA manager decides, an agent on each host keeps the kernel's tables.",
		Example:       "  culvert lab up\n  culvert network create blue --subnet 10.20.0.0/24\n  culvert port create vm1 --network blue\n  culvert status",
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          group,
		Args:          cobra.ArbitraryArgs, // group says better than cobra what is wrong
		// Completion comes with a later release; a half one would be a promise.
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	s := &session{env: env}
	f := root.PersistentFlags()
	f.StringVar(&s.tenant, "tenant", "", "tenant of names without one (default: tenant default, or the only match)")
	f.StringVarP(&s.output, "output", "o", "text", "text, json or yaml")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return usage(c, err.Error()) })
	root.AddCommand(
		s.tenantCommand(), s.networkCommand(), s.portCommand(), s.domainCommand(), s.policyCommand(), s.gatewayCommand(), s.hostCommand(), s.endpointCommand(),
		s.applyCommand(), s.schemaCommand(), s.statusCommand(), s.explainCommand(), s.versionCommand(), s.tokenCommand(),
		s.attachCommand(), s.detachCommand(), s.reportCommand(), s.libvirtCommand(),
		managerCommand(env), agentCommand(env), initCommand(env), joinCommand(env), labCommand(env),
	)
	root.SetHelpCommand(&cobra.Command{Use: "no-help", Hidden: true})
	return root
}

// exitError ends a command whose output already says why.
type exitError api.Exit

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// group answers for a command that only has verbs: help without a verb, and
// the nearest verbs for one that does not exist.
func group(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return c.Help()
	}
	var verbs []string
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			verbs = append(verbs, sub.Name())
		}
	}
	c.SuggestionsMinimumDistance = 2
	why := fmt.Sprintf("%s has no verb %q", c.CommandPath(), args[0])
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		why += "; nearest is " + strings.Join(near, ", ")
	}
	return api.Refuse(api.CodeUsage, "nothing was done", why, "verbs: "+strings.Join(verbs, ", ")+"; see culvert --help")
}

func usage(c *cobra.Command, why string) error {
	return api.Refuse(api.CodeUsage, "nothing was done", why, "see "+c.CommandPath()+" --help")
}

// exactly wants the named arguments and no more.
func exactly(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usage(c, names[len(args)]+" is missing")
		case len(args) > len(names):
			return usage(c, fmt.Sprintf("%q is one argument too many", args[len(names)]))
		}
		return nil
	}
}

// refusalOf gives any error its four parts.
func refusalOf(err error) *api.Refusal {
	if ref, ok := api.RefuseValue("nothing was done", err); ok {
		return ref
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return api.Refuse(api.CodeUnanswered, "the command was not finished", "its time was over before the answer came", "")
	}
	return api.Refuse(api.CodeLocal, "the command was not finished", err.Error(), "")
}

func printRefusal(w io.Writer, ref *api.Refusal, asJSON bool) {
	if !asJSON {
		_, _ = io.WriteString(w, ref.Text())
		return
	}
	pb := ref.PB()
	_ = writeJSON(w, struct {
		APIVersion string    `json:"apiVersion"`
		Kind       string    `json:"kind"`
		Error      jsonError `json:"error"`
	}{api.Version, "Error", jsonError{pb.GetCode(), pb.GetWhat(), pb.GetWhy(), pb.GetCure(), append([]string{}, pb.GetItems()...), int(ref.Exit())}})
}

type jsonError struct {
	Code  string   `json:"code"`
	What  string   `json:"what"`
	Why   string   `json:"why"`
	Cure  string   `json:"cure"`
	Items []string `json:"items"`
	Exit  int      `json:"exit"`
}

// writeJSON prints one indented document.
func writeJSON(w io.Writer, v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("document as JSON: %w", err)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// writeJSONLine prints one document on one line, for streams.
func writeJSONLine(w io.Writer, v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("document as JSON: %w", err)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// labConfig is where the lab's configuration is looked for.
func (e *Env) labConfig() string {
	if e.LabConfig != "" {
		return e.LabConfig
	}
	return client.LabConfig
}
