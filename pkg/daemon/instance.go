package daemon

import (
	"crypto/rand"
	"encoding/hex"
	"os"
	"strconv"
	"strings"
)

// maxInstanceID is what River accepts as a client id.
const maxInstanceID = 100

// NewInstanceID names one run of a process: host name, process id and eight
// random hex digits. It is fresh at each call, at most 100 characters long, and
// made of letters, digits, '.', '_' and '-' only.
func NewInstanceID() string {
	host, err := os.Hostname()
	if err != nil {
		host = "" // the random part alone tells instances apart
	}
	return instanceID(host, os.Getpid())
}

func instanceID(host string, pid int) string {
	var random [4]byte
	// crypto/rand.Read never fails (Go 1.24 and later crash the program instead).
	_, _ = rand.Read(random[:])
	suffix := "-" + strconv.Itoa(pid) + "-" + hex.EncodeToString(random[:])
	host = strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '.', r == '_', r == '-':
			return r
		}
		return '_'
	}, host)
	if host == "" {
		host = "host"
	}
	return host[:min(len(host), maxInstanceID-len(suffix))] + suffix
}
