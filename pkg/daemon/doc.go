// Package daemon is what every Fairhook process repeats: settings from flags
// and the environment, running until a signal, a logger, a metrics registry,
// health checks, and stopping in order.
//
// A command's main is three lines:
//
//	func main() {
//		os.Exit(daemon.Execute(newCommand()))
//	}
//
// Execute is the only code that touches signals. Nothing in this package starts
// a goroutine in a constructor, and nothing in it is global.
package daemon
