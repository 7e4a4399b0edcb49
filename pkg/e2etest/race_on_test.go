//go:build race

package e2etest

// raceFlags builds the processes with the race detector when the tests have it.
var raceFlags = []string{"-race"}

// raceFactor is how many times slower everything may be with the race detector.
const raceFactor = 5
