// Package e2etest is the tests of the whole: the real binaries as processes, a real
// Postgres, real receivers. It has nothing to import.
package e2etest
