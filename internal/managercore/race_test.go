//go:build race

package managercore

// detector says what figures were taken under.
const detector = " (under the race detector)"
