//go:build !race

package e2etest

var raceFlags []string

const raceFactor = 1
