//go:build unix

package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// console is what the user reads. It is safe for concurrent use.
type console struct {
	mu    sync.Mutex // guards what follows; one call's text is never torn
	out   io.Writer
	steps int
}

// printf prints; a terminal that is gone is no reason to stop.
func (c *console) printf(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = fmt.Fprintf(c.out, format, args...)
}

// step prints what has been done, with its number.
func (c *console) step(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.steps++
	_, _ = fmt.Fprintf(c.out, "%2d. %s\n", c.steps, fmt.Sprintf(format, args...))
}

// note prints something that belongs to the step that is under way.
func (c *console) note(text string) { c.printf("    %s\n", text) }

// maxShown is how much of a text from outside is shown, in bytes.
const maxShown = 4 << 10

// printable makes bytes from outside safe for a terminal: text stays as it is,
// anything else is quoted.
func printable(b []byte) string {
	more := ""
	if len(b) > maxShown {
		more = fmt.Sprintf(" ... (%d bytes)", len(b))
		b = b[:maxShown]
		for range utf8.UTFMax - 1 { // do not cut a character in two
			if r, size := utf8.DecodeLastRune(b); r != utf8.RuneError || size != 1 {
				break
			}
			b = b[:len(b)-1]
		}
	}
	text := string(b)
	plain := utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool {
		return !unicode.IsPrint(r) && r != '\n' && r != '\t'
	})
	if !plain {
		text = strconv.QuoteToGraphic(text)
	}
	return text + more
}

// indent moves a text to the right.
func indent(text string) string {
	return "    " + strings.ReplaceAll(text, "\n", "\n    ")
}
