package api

import (
	"encoding/base64"
	"encoding/binary"
	"time"

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
	p.StartedAt = time.UnixMicro(int64(binary.BigEndian.Uint64(raw[1:]))).UTC()
	if year := p.StartedAt.Year(); year < 1 || year > 9999 {
		return nil, errBadCursor // made up: Postgres might not even have that moment
	}
	copy(p.ID[:], raw[9:])
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
