//go:build race

package e2etest

// raceFlags builds the processes with the race detector when the tests have it.
var raceFlags = []string{"-race"}
