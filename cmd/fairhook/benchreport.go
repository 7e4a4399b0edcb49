//go:build unix

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/fairhook/fairhook/pkg/daemon"
)

// benchReport is the outcome of a run. Its JSON form is kept compatible: names
// may be added.
type benchReport struct {
	Version  string        `json:"version"`
	Machine  benchMachine  `json:"machine"`
	Postgres benchPostgres `json:"postgres"`

	Connections        int     `json:"connections"`
	DeliverConnections int     `json:"deliver_connections"`
	PayloadBytes       int     `json:"payload_bytes"`
	BatchItems         int     `json:"batch_items"`
	MaxInFlight        int     `json:"max_in_flight"`
	DurationSeconds    float64 `json:"duration_seconds"`
	QuietSeconds       float64 `json:"quiet_seconds"`

	// The parts; those that were not run are missing. Cases are of the acceptance.
	Cases    []benchCase     `json:"cases,omitempty"`
	Deliver  []benchDelivery `json:"deliver,omitempty"`
	Latency  *benchQuiet     `json:"latency,omitempty"`
	Ordered  []benchOrdered  `json:"ordered,omitempty"`
	Fairness []benchFairness `json:"fairness,omitempty"`
	Gated    *benchGated     `json:"gated,omitempty"`
}

type benchMachine struct {
	OS   string `json:"os"`
	Arch string `json:"arch"`
	CPUs int    `json:"cpus"`
	CPU  string `json:"cpu,omitempty"`
	// Load is how busy the machine was when the run began: what waited for a
	// processor in the last minute, on average.
	Load string `json:"load,omitempty"`
	Go   string `json:"go"`
}

type benchPostgres struct {
	Version           string `json:"version"`
	Fsync             string `json:"fsync"`
	SynchronousCommit string `json:"synchronous_commit"`
	SharedBuffers     string `json:"shared_buffers"`
}

// benchCase is one measurement.
type benchCase struct {
	Webhooks int    `json:"webhooks"`
	Mode     string `json:"mode"` // modeSingle or modeBatch
	// EventsPerSecond is how many events were acknowledged, and Ratio that in
	// relation to the mean of the two raw rates.
	EventsPerSecond float64 `json:"events_per_second"`
	Ratio           float64 `json:"ratio"`
	// P50 and P99 are the times of the requests that were accepted, and Requests
	// their number.
	P50      time.Duration `json:"p50_ns"`
	P99      time.Duration `json:"p99_ns"`
	Requests int           `json:"requests"`
	// Refused is how many events were answered with 429 or 503.
	Refused int `json:"refused"`
	// RawBefore and RawAfter are the events a second that were inserted directly.
	RawBefore float64 `json:"raw_before_per_second"`
	RawAfter  float64 `json:"raw_after_per_second"`
}

// benchDelivery is one measurement of acceptance and delivery together.
type benchDelivery struct {
	Webhooks int    `json:"webhooks"`
	Mode     string `json:"mode"` // modeSingle or modeBatch
	// EventsPerSecond is all events in relation to the time from the first
	// submission to the last arrival, and Ratio that in relation to the mean of the
	// two rates of a stock River.
	EventsPerSecond float64 `json:"events_per_second"`
	Ratio           float64 `json:"ratio"`
	// AcceptedPerSecond is in relation to the time in which events were submitted.
	AcceptedPerSecond float64 `json:"accepted_per_second"`
	// P50 and P99 are from the start of an event's submission to its arrival.
	P50 time.Duration `json:"p50_ns"`
	P99 time.Duration `json:"p99_ns"`
	// WALBytes, RowWrites (rows inserted, updated and deleted) and Commits are for
	// each event.
	WALBytes  float64 `json:"wal_bytes_per_event"`
	RowWrites float64 `json:"row_writes_per_event"`
	Commits   float64 `json:"commits_per_event"`
	// Events came at least once; Duplicates is how many deliveries came again.
	Events     int `json:"events"`
	Duplicates int `json:"duplicates"`
	Refused    int `json:"refused"`
	// RiverBefore and RiverAfter are the no-op jobs a second of a stock River.
	RiverBefore float64 `json:"river_before_per_second"`
	RiverAfter  float64 `json:"river_after_per_second"`
}

// benchQuiet is one measurement of latencies at a low rate.
type benchQuiet struct {
	Webhooks  int `json:"webhooks"`
	PerSecond int `json:"events_per_second"`
	// P50 and P99 are from the start of an event's submission to its arrival,
	// AnsweredP50 and AnsweredP99 from the answer to it.
	P50         time.Duration `json:"p50_ns"`
	P99         time.Duration `json:"p99_ns"`
	AnsweredP50 time.Duration `json:"answered_p50_ns"`
	AnsweredP99 time.Duration `json:"answered_p99_ns"`
	Events      int           `json:"events"`
	Duplicates  int           `json:"duplicates"`
	Refused     int           `json:"refused"`
	// Late is how many were submitted more than 10 ms after their time, which is
	// the generator's fault.
	Late int `json:"late"`
}

// benchFairness is a measurement of the quiet webhooks beside others.
type benchFairness struct {
	Beside string `json:"beside"` // besideNothing and so on
	benchQuiet
	// Bound is what P99 may be, twice the mean of those beside nothing and 20 ms,
	// and OK whether it is within that. Both are missing beside nothing.
	Bound *time.Duration `json:"bound_ns,omitempty"`
	OK    *bool          `json:"ok,omitempty"`
	// OpenBreakers is how many were open at the start, beside breakers.
	OpenBreakers *int `json:"open_breakers,omitempty"`
	// Detail says for people what the others were in.
	Detail string `json:"detail,omitempty"`
}

// benchGated is the measurement with deliveries waiting behind gates.
type benchGated struct {
	Waiting int `json:"waiting"`
	Lanes   int `json:"lanes"`
	// EventsPerSecond is the mean of the two rates of delivered events before and
	// after Latency, and Ratio that in relation to the mean of the two rates without
	// waiting deliveries.
	EventsPerSecond float64    `json:"events_per_second"`
	Ratio           float64    `json:"ratio"`
	GatedBefore     float64    `json:"gated_before_per_second"`
	GatedAfter      float64    `json:"gated_after_per_second"`
	EmptyBefore     float64    `json:"empty_before_per_second"`
	EmptyAfter      float64    `json:"empty_after_per_second"`
	Latency         benchQuiet `json:"latency"`
}

func newBenchReport(cfg benchConfig) *benchReport {
	return &benchReport{
		Version: daemon.Version(),
		Machine: benchMachine{
			OS: runtime.GOOS, Arch: runtime.GOARCH, CPUs: runtime.NumCPU(), CPU: cpuModel(), Load: loadAverage(), Go: runtime.Version(),
		},
		Connections: cfg.Connections, DeliverConnections: cfg.DeliverConnections, PayloadBytes: cfg.PayloadBytes,
		BatchItems: cfg.BatchItems, MaxInFlight: cfg.MaxInFlight,
		DurationSeconds: cfg.Duration.Seconds(), QuietSeconds: cfg.QuietDuration.Seconds(),
	}
}

// cpuModel and loadAverage are empty where the system does not say.
func cpuModel() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		if name, value, found := strings.Cut(lines.Text(), ":"); found && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	minute, _, _ := strings.Cut(string(text), " ")
	return minute
}

func (r *benchReport) writeJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(r)
}

func (r *benchReport) writeTable(w io.Writer) error {
	machine := fmt.Sprintf("%d CPUs", r.Machine.CPUs)
	if r.Machine.CPU != "" {
		machine += " (" + r.Machine.CPU + ")"
	}
	if r.Machine.Load != "" {
		machine += ", load " + r.Machine.Load + " before"
	}
	var text bytes.Buffer
	fmt.Fprintf(&text, "Fairhook %s, Postgres %s with fsync=%s synchronous_commit=%s shared_buffers=%s, %s\n",
		r.Version, r.Postgres.Version, r.Postgres.Fsync, r.Postgres.SynchronousCommit, r.Postgres.SharedBuffers, machine)
	fmt.Fprintf(&text, "%d bytes of payload, %d events in a batch, max_in_flight %d\n", r.PayloadBytes, r.BatchItems, r.MaxInFlight)
	for _, write := range []func(io.Writer) error{r.writeAccept, r.writeDeliver, r.writeLatency, r.writeOrdered, r.writeFairness, r.writeGated} {
		if err := write(&text); err != nil {
			return err
		}
	}
	_, err := w.Write(text.Bytes())
	return err
}

// writeRows writes a table under a title; the first row is its heading.
func writeRows(w io.Writer, title string, rows ...string) error {
	fmt.Fprintf(w, "\n%s\n\n", title)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, row := range rows {
		fmt.Fprintln(table, row+"\t")
	}
	return table.Flush()
}

func (r *benchReport) writeAccept(w io.Writer) error {
	if r.Cases == nil {
		return nil
	}
	rows := []string{"webhooks\tmode\tevents/s\tof raw\tp50 ms\tp99 ms\trefused\traw/s before\traw/s after"}
	for _, c := range r.Cases {
		rows = append(rows, fmt.Sprintf("%d\t%s\t%.0f\t%.2f\t%.1f\t%.1f\t%d\t%.0f\t%.0f", c.Webhooks, c.Mode, c.EventsPerSecond, c.Ratio,
			milliseconds(c.P50), milliseconds(c.P99), c.Refused, c.RawBefore, c.RawAfter))
	}
	return writeRows(w, fmt.Sprintf("accept: %d connections, %g s for each case", r.Connections, r.DurationSeconds), rows...)
}

func (r *benchReport) writeDeliver(w io.Writer) error {
	if r.Deliver == nil {
		return nil
	}
	rows := []string{"webhooks\tmode\tdelivered/s\tof River\taccepted/s\tp50 ms\tp99 ms\tWAL B\twrites\tcommits\ttwice\trefused\tRiver/s before\tRiver/s after"}
	for _, c := range r.Deliver {
		rows = append(rows, fmt.Sprintf("%d\t%s\t%.0f\t%.2f\t%.0f\t%.1f\t%.1f\t%.0f\t%.2f\t%.3f\t%d\t%d\t%.0f\t%.0f", c.Webhooks, c.Mode, c.EventsPerSecond, c.Ratio,
			c.AcceptedPerSecond, milliseconds(c.P50), milliseconds(c.P99), c.WALBytes, c.RowWrites, c.Commits, c.Duplicates, c.Refused, c.RiverBefore, c.RiverAfter))
	}
	return writeRows(w, fmt.Sprintf("deliver: %d connections, %g s for each case", r.DeliverConnections, r.DurationSeconds), rows...)
}

// The columns that every measurement of latencies has.
const quietHeading = "p50 ms\tp99 ms\tp50 ms from 202\tp99 ms from 202\tevents\ttwice\trefused\tlate"

func (q *benchQuiet) row() string {
	return fmt.Sprintf("%.1f\t%.1f\t%.1f\t%.1f\t%d\t%d\t%d\t%d", milliseconds(q.P50), milliseconds(q.P99),
		milliseconds(q.AnsweredP50), milliseconds(q.AnsweredP99), q.Events, q.Duplicates, q.Refused, q.Late)
}

func (q *benchQuiet) load() string {
	return fmt.Sprintf("%d events/s over %d webhooks", q.PerSecond, q.Webhooks)
}

func (r *benchReport) writeLatency(w io.Writer) error {
	if r.Latency == nil {
		return nil
	}
	return writeRows(w, fmt.Sprintf("latency: %s for %g s", r.Latency.load(), r.QuietSeconds), quietHeading, r.Latency.row())
}

func (r *benchReport) writeFairness(w io.Writer) error {
	if r.Fairness == nil {
		return nil
	}
	rows := []string{"beside\t" + quietHeading + "\tbound ms\twithin"}
	for _, f := range r.Fairness {
		row := f.Beside + "\t" + f.row()
		if f.OK != nil {
			row += fmt.Sprintf("\t%.1f\t%s", milliseconds(*f.Bound), map[bool]string{true: "ok", false: "NOT OK"}[*f.OK])
		}
		rows = append(rows, row)
	}
	if err := writeRows(w, fmt.Sprintf("fairness: %s for %g s, beside others", r.Fairness[0].load(), r.QuietSeconds), rows...); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, f := range r.Fairness {
		if f.Detail != "" {
			fmt.Fprintf(w, "%s: %s\n", f.Beside, f.Detail)
		}
	}
	return nil
}

func (r *benchReport) writeGated(w io.Writer) error {
	if r.Gated == nil {
		return nil
	}
	g := r.Gated
	err := writeRows(w, fmt.Sprintf("gated: %d deliveries wait for %d paused webhooks", g.Waiting, g.Lanes),
		"delivered/s\tof empty\tfirst/s\tsecond/s\tempty/s before\tempty/s after",
		fmt.Sprintf("%.0f\t%.2f\t%.0f\t%.0f\t%.0f\t%.0f", g.EventsPerSecond, g.Ratio, g.GatedBefore, g.GatedAfter, g.EmptyBefore, g.EmptyAfter))
	if err != nil {
		return err
	}
	return writeRows(w, fmt.Sprintf("... and %s for %g s meanwhile", g.Latency.load(), r.QuietSeconds), quietHeading, g.Latency.row())
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
