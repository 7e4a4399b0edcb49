package daemon

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Common are the settings that every command that talks to the database has.
// Embed it in the command's config struct.
type Common struct {
	// DatabaseURL is the database that holds the schema fairhook. It may go
	// through a pgbouncer in transaction mode.
	DatabaseURL SecretString
	// ListenDatabaseURL is a direct connection to the same database, for LISTEN
	// and for migrations, where DatabaseURL goes through a pooler. Unset means
	// DatabaseURL: use DirectDatabaseURL to read it.
	ListenDatabaseURL SecretString
	// LogLevel is debug, info, warn or error.
	LogLevel string
	// LogFormat is json or text.
	LogFormat string
}

// Register declares the settings. Whether database-url is required is the
// command's choice: Settings.Required("database-url").
func (c *Common) Register(s *Settings) {
	s.Secret(&c.DatabaseURL, "database-url", "the Postgres database, as postgres://user:password@host/database")
	s.Secret(&c.ListenDatabaseURL, "listen-database-url", "the same database without a pooler in between, for LISTEN and migrations; the database URL if not set")
	s.String(&c.LogLevel, "log-level", "info", "least severe log line to write: debug, info, warn or error")
	s.String(&c.LogFormat, "log-format", "json", "form of the log lines: json or text")
	s.Check("database-url", func() error { return checkDatabaseURL(c.DatabaseURL) })
	s.Check("listen-database-url", func() error { return checkDatabaseURL(c.ListenDatabaseURL) })
	s.Check("log-level", func() error {
		if _, known := logLevels[c.LogLevel]; !known {
			return fmt.Errorf("%q is not a log level: choose debug, info, warn or error", c.LogLevel)
		}
		return nil
	})
	s.Check("log-format", func() error {
		if c.LogFormat != formatJSON && c.LogFormat != formatText {
			return fmt.Errorf("%q is not a log format: choose json or text", c.LogFormat)
		}
		return nil
	})
}

// DirectDatabaseURL is ListenDatabaseURL, or DatabaseURL where that is not set.
func (c *Common) DirectDatabaseURL() SecretString {
	if c.ListenDatabaseURL.IsSet() {
		return c.ListenDatabaseURL
	}
	return c.DatabaseURL
}

// NewLogger is NewLogger with these settings; every line carries the process's
// role and instance besides the version.
func (c *Common) NewLogger(w io.Writer, role, instance string) (*slog.Logger, *slog.LevelVar) {
	logger, level := NewLogger(w, c.LogLevel, c.LogFormat)
	return logger.With(slog.String("role", role), slog.String("instance", instance)), level
}

// checkDatabaseURL leaves the URL out of its error: it holds a password, and
// where a URL cannot be parsed nobody can say which part that is.
func checkDatabaseURL(url SecretString) error {
	if !url.IsSet() {
		return nil
	}
	_, err := pgxpool.ParseConfig(url.Reveal())
	if err == nil {
		return nil
	}
	detail := err.Error()
	if cause := errors.Unwrap(err); cause != nil {
		detail = cause.Error()
	}
	if strings.Contains(detail, url.Reveal()) || containsPassword(detail, url.Reveal()) {
		detail = "it cannot be parsed"
	}
	return fmt.Errorf("is not a database URL (%s): write it like postgres://user:password@host:5432/database, with special characters in the password percent-encoded", detail)
}

// containsPassword reports whether any piece of the URL that could be its
// password is in text. It errs on the side of yes.
func containsPassword(text, url string) bool {
	credentials := url
	if at := strings.LastIndex(url, "@"); at >= 0 {
		credentials = url[:at]
	}
	for piece := range strings.FieldsFuncSeq(credentials, func(r rune) bool { return strings.ContainsRune(":/@?&='\" ", r) }) {
		if len(piece) > 3 && piece != "postgres" && piece != "postgresql" && strings.Contains(text, piece) {
			return true
		}
	}
	return false
}
