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

	Connections     int     `json:"connections"`
	PayloadBytes    int     `json:"payload_bytes"`
	BatchItems      int     `json:"batch_items"`
	DurationSeconds float64 `json:"duration_seconds"`
	Deliver         bool    `json:"deliver"`

	Cases []benchCase `json:"cases"`
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
	// DeliveredPerSecond is all events in relation to the time from the first
	// submission to the last delivery.
	DeliveredPerSecond *float64 `json:"delivered_per_second,omitempty"`
}

func newBenchReport(cfg benchConfig) *benchReport {
	return &benchReport{
		Version: daemon.Version(),
		Machine: benchMachine{
			OS: runtime.GOOS, Arch: runtime.GOARCH, CPUs: runtime.NumCPU(), CPU: cpuModel(), Load: loadAverage(), Go: runtime.Version(),
		},
		Connections: cfg.Connections, PayloadBytes: cfg.PayloadBytes, BatchItems: cfg.BatchItems,
		DurationSeconds: cfg.Duration.Seconds(), Deliver: cfg.Deliver,
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
	fmt.Fprintf(&text, "%d connections, %d bytes of payload, %d events in a batch, %g s for each case\n\n",
		r.Connections, r.PayloadBytes, r.BatchItems, r.DurationSeconds)
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	heading := "webhooks\tmode\tevents/s\tof raw\tp50 ms\tp99 ms\trefused\traw/s before\traw/s after\t"
	if r.Deliver {
		heading += "delivered/s\t"
	}
	fmt.Fprintln(table, heading)
	for _, c := range r.Cases {
		fmt.Fprintf(table, "%d\t%s\t%.0f\t%.2f\t%.1f\t%.1f\t%d\t%.0f\t%.0f\t", c.Webhooks, c.Mode, c.EventsPerSecond, c.Ratio,
			milliseconds(c.P50), milliseconds(c.P99), c.Refused, c.RawBefore, c.RawAfter)
		if c.DeliveredPerSecond != nil {
			fmt.Fprintf(table, "%.0f\t", *c.DeliveredPerSecond)
		}
		fmt.Fprintln(table)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := w.Write(text.Bytes())
	return err
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
