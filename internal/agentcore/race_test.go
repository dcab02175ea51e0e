//go:build race

package agentcore

// detector says what figures were taken under.
const detector = " (under the race detector)"
