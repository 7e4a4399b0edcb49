//go:build !race

package e2etest

var raceFlags []string
