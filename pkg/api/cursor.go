package api

import (
	"encoding/base64"
	"encoding/binary"
	"slices"
	"time"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// Cursors are opaque to callers: base64 of a byte that says what kind it is, so
// that the cursor of one list is refused by another, and of the place of the
// last item shown. A cursor names a place, not a page: items that come or go
// meanwhile are neither shown twice nor skipped.
const (
	webhookCursorKind = 'w'
	attemptCursorKind = 'a'
	nameCursorKind    = 'n'
	keyCursorKind     = 'k'
	endedCursorKind   = 'd'

	instanceCursorKind = 'i'
	eventCursorKind    = 'e'
	deliveryCursorKind = 'x' // of a webhook's deliveries, by event
	laneCursorKind     = 'l' // of a webhook's deliveries that have not ended
)

var errBadCursor = badQuery(parameterFault("cursor", "must be a next_cursor from an earlier page of this list"))

// encodeIDCursor is the cursor of a list in the order of ids.
func encodeIDCursor(kind byte, id webhook.ID) string {
	return base64.RawURLEncoding.EncodeToString(append([]byte{kind}, id[:]...))
}

func decodeIDCursor(kind byte, text string) (id webhook.ID, err error) {
	if text == "" {
		return id, nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != 1+len(id) || raw[0] != kind {
		return id, errBadCursor
	}
	copy(id[:], raw[1:])
	return id, nil
}

func encodeAttemptCursor(p postgres.AttemptPosition) string {
	raw := binary.BigEndian.AppendUint64([]byte{attemptCursorKind}, uint64(p.StartedAt.UnixMicro()))
	return base64.RawURLEncoding.EncodeToString(append(raw, p.ID[:]...))
}

func decodeAttemptCursor(text string) (*postgres.AttemptPosition, error) {
	if text == "" {
		return nil, nil
	}
	p := &postgres.AttemptPosition{}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != 1+8+len(p.ID) || raw[0] != attemptCursorKind {
		return nil, errBadCursor
	}
	if p.StartedAt, err = cursorTime(raw[1:]); err != nil {
		return nil, err
	}
	copy(p.ID[:], raw[9:])
	return p, nil
}

// cursorTime reads the microseconds that a cursor's first 8 bytes are.
func cursorTime(raw []byte) (time.Time, error) {
	moment := time.UnixMicro(int64(binary.BigEndian.Uint64(raw))).UTC()
	if year := moment.Year(); year < 1 || year > 9999 {
		return moment, errBadCursor // made up: Postgres might not even have that moment
	}
	return moment, nil
}

func encodeInstanceCursor(p postgres.InstancePosition) string {
	raw := binary.BigEndian.AppendUint64([]byte{instanceCursorKind}, uint64(p.StartedAt.UnixMicro()))
	return base64.RawURLEncoding.EncodeToString(append(raw, p.ID...))
}

func decodeInstanceCursor(text string) (*postgres.InstancePosition, error) {
	if text == "" {
		return nil, nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) < 1+8 || raw[0] != instanceCursorKind || !isPlainText(raw[9:]) {
		return nil, errBadCursor
	}
	p := &postgres.InstancePosition{ID: string(raw[9:])}
	if p.StartedAt, err = cursorTime(raw[1:]); err != nil {
		return nil, err
	}
	return p, nil
}

// isPlainText reports whether raw is printable ASCII, as an instance's id is.
func isPlainText(raw []byte) bool {
	return !slices.ContainsFunc(raw, func(c byte) bool { return c < ' ' || c > '~' })
}

func encodeLaneCursor(p fairqueue.LanePosition) string {
	raw := binary.BigEndian.AppendUint64([]byte{laneCursorKind}, uint64(p.DueAt.UnixMicro()))
	return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint64(raw, uint64(p.Job)))
}

func decodeLaneCursor(text string) (*fairqueue.LanePosition, error) {
	if text == "" {
		return nil, nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != 1+8+8 || raw[0] != laneCursorKind {
		return nil, errBadCursor
	}
	p := &fairqueue.LanePosition{Job: int64(binary.BigEndian.Uint64(raw[9:]))}
	if p.DueAt, err = cursorTime(raw[1:]); err != nil {
		return nil, err
	}
	return p, nil
}

// encodeNameCursor is the cursor of a list in the order of event types' names.
func encodeNameCursor(name string) string {
	return base64.RawURLEncoding.EncodeToString(append([]byte{nameCursorKind}, name...))
}

func decodeNameCursor(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) < 2 || raw[0] != nameCursorKind || webhook.CheckEventType(string(raw[1:])) != "" {
		return "", errBadCursor
	}
	return string(raw[1:]), nil
}
