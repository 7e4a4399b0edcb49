package daemon

import (
	"runtime/debug"
	"strings"
)

// version is set by release builds:
//
//	go build -ldflags "-X github.com/fairhook/fairhook/pkg/daemon.version=v1.2.3"
var version string

// Version is the version of the running binary: the one its release build was
// given, else the module version that Go recorded, else "devel" followed by the
// commit where Go recorded one. It has no spaces and is never empty.
func Version() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return develVersion
	}
	return versionOf(info)
}

const develVersion = "devel"

func versionOf(info *debug.BuildInfo) string {
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	if commit := revision(info); commit != "" {
		return develVersion + "+" + commit
	}
	return develVersion
}

// revision is the first 12 digits of the commit, with "-dirty" behind it where
// the tree differed from it, or empty.
func revision(info *debug.BuildInfo) string {
	var commit string
	var dirty bool
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			commit = s.Value[:min(12, len(s.Value))]
		case "vcs.modified":
			dirty = s.Value == "true"
		}
	}
	if commit != "" && dirty {
		return strings.Join([]string{commit, "dirty"}, "-")
	}
	return commit
}
