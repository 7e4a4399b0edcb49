package daemon

import (
	"context"
	"io"
	"log/slog"
)

const (
	formatJSON = "json"
	formatText = "text"
)

var logLevels = map[string]slog.Level{
	"debug": slog.LevelDebug,
	"info":  slog.LevelInfo,
	"warn":  slog.LevelWarn,
	"error": slog.LevelError,
}

// NewLogger writes one line per record to w, as JSON or, when format is "text",
// as key=value pairs. Times are in UTC and every line carries the version. The
// level can be changed while the process runs. A level that Common would refuse
// is taken for info.
func NewLogger(w io.Writer, level, format string) (*slog.Logger, *slog.LevelVar) {
	var current slog.LevelVar
	current.Set(logLevels[level]) // the zero Level is info
	options := &slog.HandlerOptions{Level: &current}
	var handler slog.Handler = slog.NewJSONHandler(w, options)
	if format == formatText {
		handler = slog.NewTextHandler(w, options)
	}
	return slog.New(utcHandler{handler}).With(slog.String("version", Version())), &current
}

// CaptureStandardLog makes debug lines of logger's of what libraries print with package
// log, for the whole process. net/http does with what a receiver sends unasked, some
// kilobytes for each of its connections: whoever owns the receiver would write to a
// log that is read line by line as JSON.
func CaptureStandardLog(logger *slog.Logger) {
	slog.SetLogLoggerLevel(slog.LevelDebug)
	slog.SetDefault(logger)
}

// utcHandler writes times in UTC. It is cheaper than a ReplaceAttr, which slog
// would call for every attribute of every line.
type utcHandler struct{ slog.Handler }

func (h utcHandler) Handle(ctx context.Context, record slog.Record) error {
	record.Time = record.Time.UTC()
	return h.Handler.Handle(ctx, record)
}

func (h utcHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return utcHandler{h.Handler.WithAttrs(attrs)}
}

func (h utcHandler) WithGroup(name string) slog.Handler {
	return utcHandler{h.Handler.WithGroup(name)}
}
