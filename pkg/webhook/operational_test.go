package webhook_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/webhook"
)

func TestFailureSteps(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	five := webhook.FailurePolicy{DisableAfter: 5 * day, WarnAfter: 15 * time.Minute}
	for _, tt := range []struct {
		name      string
		policy    webhook.FailurePolicy
		failing   time.Duration
		announced int
		step      int
		due       bool
	}{
		{"NothingAtFirst", five, 0, webhook.NothingAnnounced, webhook.NothingAnnounced, false},
		{"NothingJustBeforeTheEarlyOne", five, 15*time.Minute - 1, webhook.NothingAnnounced, webhook.NothingAnnounced, false},
		{"TheEarlyOne", five, 15 * time.Minute, webhook.NothingAnnounced, 0, true},
		{"TheEarlyOneOnce", five, 2 * day, 0, 0, false},
		{"Half", five, 60 * time.Hour, 0, 50, true},
		{"HalfOnce", five, 83 * time.Hour, 50, 50, false},
		{"SeventyPercent", five, 84 * time.Hour, 50, 70, true},
		{"NinetyPercent", five, 108 * time.Hour, 70, 90, true},
		{"NotDisabledBefore", five, 5*day - 1, 90, 90, false},
		{"Disabled", five, 5 * day, 90, 100, true},
		{"DisabledAtOnceWhenNothingCouldBeSaidBefore", five, 6 * day, webhook.NothingAnnounced, 100, true},
		{"WhatWasPassedOverIsNotMadeUpFor", five, 100 * time.Hour, 0, 70, true},
		{"NeverDisabledButAnnounced", webhook.FailurePolicy{WarnAfter: time.Hour}, 365 * day, webhook.NothingAnnounced, 0, true},
		{"NothingAtAll", webhook.FailurePolicy{}, 365 * day, webhook.NothingAnnounced, webhook.NothingAnnounced, false},
		{"AShortTimeHasNoEarlyOne", webhook.FailurePolicy{DisableAfter: 10 * time.Minute, WarnAfter: 15 * time.Minute}, 5 * time.Minute, webhook.NothingAnnounced, 50, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if step, due := tt.policy.Step(tt.failing, tt.announced); step != tt.step || due != tt.due {
				t.Errorf("got %d, %v; want %d, %v", step, due, tt.step, tt.due)
			}
		})
	}
	t.Run("AWebhooksOwnTimeGoesBeforeTheSetting", func(t *testing.T) {
		t.Parallel()
		never, hour := 0, 3600
		if got := five.For(nil); got != five {
			t.Errorf("without one: %+v", got)
		}
		if got := five.For(&never); got.DisableAfter != 0 || got.WarnAfter != five.WarnAfter {
			t.Errorf("with 0: %+v", got)
		}
		if got := five.For(&hour); got.DisableAfter != time.Hour {
			t.Errorf("with 3600: %+v", got)
		}
	})
}

func TestGrowingBacklogs(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ setting, max, growing, shrunk int }{
		{10_000, 1_000_000, 10_000, 5_000},
		{10_000, 1000, 500, 250}, // before it is full
		{10_000, 1, 1, 1},        // announced with one, over with none
		{1, 1_000_000, 1, 1},
	} {
		growing := webhook.GrowingAt(tt.setting, tt.max)
		if shrunk := webhook.ShrunkAt(growing); growing != tt.growing || shrunk != tt.shrunk {
			t.Errorf("with %d set and room for %d: %d and %d", tt.setting, tt.max, growing, shrunk)
		}
	}
}

func TestAnOperationalEventTellsNoSecret(t *testing.T) {
	t.Parallel()
	subject := webhook.NewSubject("acme", webhook.ID{1}, "https://user:word@Hooks.example.com:8443/services/T0/secret?token=secret#secret")
	e := webhook.OperationalEvent{
		Type: webhook.WebhookRecovered, At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600)), Subject: subject,
		Data: webhook.RecoveredData{Subject: subject, By: webhook.RecoveredTest},
	}
	payload, err := e.Payload()
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"type":"webhook.recovered","timestamp":"2026-01-02T02:04:05Z","data":{"tenant":"acme",` +
		`"webhook_id":"01000000-0000-0000-0000-000000000000","host":"hooks.example.com:8443","by":"test","failing_since":null}}`
	if string(payload) != want {
		t.Errorf("got  %s\nwant %s", payload, want)
	}
	if !json.Valid(payload) || strings.Contains(string(payload), "secret") {
		t.Error("it does, or is no JSON")
	}
}
