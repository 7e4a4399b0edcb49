// Package fairqueue is the fair fetch for River: it decides which delivery a
// dispatcher works next, so that one webhook's backlog, slowness or outage never
// delays another's deliveries.
//
// River does the queueing: states, claiming, retry scheduling, batch
// completion, leader election. This package replaces its fetch and its
// completion through the seam that River calls a pilot, and is the only code
// that touches River's internals or its job table. River marks the seam as
// internal, so River is pinned, and TestSeam fails with a clear message when an
// upgrade moved it.
//
// # Lanes
//
// A job's queue column holds its lane, "wh-" and the webhook's id. River's own
// index (state, queue, priority, scheduled_at, id) then is the index of lanes.
// Each dispatcher keeps the lanes that have something due in a ring in memory,
// fed by notifications, by the due times it has seen, and by discovery, a walk
// over the distinct lanes of the index. A fetch offers each lane in the ring an
// equal share of the free slots, within the lane's cap, and never passes over a
// lane for another twice.
//
// # What it guarantees
//
//   - A lane at its cap, or behind a gate, costs a fetch nothing.
//   - A claim lost between the database and this process is given back.
//   - Only the claim that is current can finish a job: what a process that was
//     presumed dead reports later changes nothing.
package fairqueue
