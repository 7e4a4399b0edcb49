package webhook

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"
)

// ID is a UUIDv7 (RFC 9562, section 5.7): the identifier of every webhook,
// event and attempt, written the same way in the API, in logs and in SQL. Its
// first 48 bits are the Unix time in milliseconds at which it was made, so ids
// sort by age.
type ID [16]byte

// NewID makes an id for the given moment, which must come from the database's
// clock (postgres.Clock), never from the host's: ids decide which day partition
// a row belongs to.
//
// The 12 bits after the millisecond carry its fraction (RFC 9562, section 6.2,
// method 3), so that ids made microseconds apart still sort in the order in
// which they were made.
func NewID(now time.Time) ID {
	var id ID
	// crypto/rand.Read never fails (Go 1.24 and later crash the program instead).
	_, _ = rand.Read(id[8:])
	nanos := now.UnixNano()
	millis := uint64(nanos / int64(time.Millisecond))
	fraction := uint64(nanos%int64(time.Millisecond)) * 4096 / uint64(time.Millisecond)
	id[0], id[1], id[2] = byte(millis>>40), byte(millis>>32), byte(millis>>24)
	id[3], id[4], id[5] = byte(millis>>16), byte(millis>>8), byte(millis)
	id[6], id[7] = 0x70|byte(fraction>>8), byte(fraction)
	id[8] = 0x80 | id[8]&0x3f
	return id
}

// ParseID reads the canonical text form, 36 characters, in either case. Other
// spellings that some UUID parsers accept (braces, "urn:uuid:", no hyphens) are
// refused, so that an id has one spelling everywhere.
func ParseID(s string) (ID, error) {
	if len(s) != 36 {
		return ID{}, fmt.Errorf("id %q is not a UUID", s)
	}
	u, err := uuid.Parse(s)
	if err != nil {
		return ID{}, fmt.Errorf("id %q is not a UUID", s)
	}
	return ID(u), nil
}

// String is the canonical lower-case text form.
func (id ID) String() string {
	var buf [36]byte
	id.encode(&buf)
	return string(buf[:])
}

func (id ID) encode(dst *[36]byte) {
	hex.Encode(dst[0:8], id[0:4])
	dst[8] = '-'
	hex.Encode(dst[9:13], id[4:6])
	dst[13] = '-'
	hex.Encode(dst[14:18], id[6:8])
	dst[18] = '-'
	hex.Encode(dst[19:23], id[8:10])
	dst[23] = '-'
	hex.Encode(dst[24:36], id[10:16])
}

// Time is the moment the id was made, to the millisecond, in UTC.
func (id ID) Time() time.Time {
	millis := int64(id[0])<<40 | int64(id[1])<<32 | int64(id[2])<<24 |
		int64(id[3])<<16 | int64(id[4])<<8 | int64(id[5])
	return time.UnixMilli(millis).UTC()
}

// IsZero reports whether the id is all zeros, which NewID never returns.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText makes an id a JSON string, and usable as a JSON object key.
func (id ID) MarshalText() ([]byte, error) {
	var buf [36]byte
	id.encode(&buf)
	return buf[:], nil
}

// UnmarshalText is the inverse of MarshalText.
func (id *ID) UnmarshalText(text []byte) error {
	parsed, err := ParseID(string(text))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}

// UUIDValue lets pgx send an id as a Postgres uuid.
func (id ID) UUIDValue() (pgtype.UUID, error) {
	return pgtype.UUID{Bytes: id, Valid: true}, nil
}

// ScanUUID lets pgx read a Postgres uuid into an id. NULL is an error: scan
// into *ID pointers (**ID) where a column can be null.
func (id *ID) ScanUUID(v pgtype.UUID) error {
	if !v.Valid {
		return fmt.Errorf("cannot read a null uuid into an id")
	}
	*id = v.Bytes
	return nil
}
