// Package heartbeat says that an instance lives, and how much it has to do, in the
// table that the others and /v1/instances read.
//
// It guarantees that Fresh is false before the others may take the instance for
// dead: who asks it before each thing that only a living instance may do does no
// harm after having been stopped for a minute. It leaves to its caller what to do
// about the dead; Observed says when silence means death.
package heartbeat
