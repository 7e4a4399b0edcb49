//go:build unix

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var (
	// codeSpan is code within a line.
	codeSpan = regexp.MustCompile("`([^`]+)`")
	// flagName is a flag as one writes it.
	flagName = regexp.MustCompile(`(?:^|[\s(\[])(--[a-z][a-z-]*|-o\b)`)
)

// toolDocs are the pages whose flags are those of the tool.
var toolDocs = []string{"tool.md", "migrating.md"}

// documentedCommands are the command lines of the tool that the documentation has, each
// with its page. In a table `fairhook webhook list`, `show` names two.
func documentedCommands(t *testing.T) map[string]string {
	t.Helper()
	root := filepath.Join("..", "..")
	pages := []string{filepath.Join(root, "README.md"), filepath.Join(root, "CONTRIBUTING.md")}
	for _, pattern := range []string{"*.md", "*/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, "docs", pattern))
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, found...)
	}
	lines := map[string]string{}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "fairhook ") {
				lines[strings.TrimSpace(line)] = page
			}
			cell, group := line, ""
			if strings.HasPrefix(line, "| `fairhook ") {
				cell, _, _ = strings.Cut(strings.ReplaceAll(line[2:], `\|`, "/"), "|")
			}
			for _, span := range codeSpan.FindAllStringSubmatch(cell, -1) {
				switch {
				case strings.HasPrefix(span[1], "fairhook "):
					lines[span[1]] = page
					words := strings.Fields(span[1])
					group = strings.Join(words[:len(words)-1], " ")
				case cell != line && group != "":
					lines[group+" "+span[1]] = page
				}
			}
		}
	}
	return lines
}

// Every command of the tool that is documented exists, with the flags that it is given,
// and docs/tool.md names every command there is.
func TestCommandsAreDocumented(t *testing.T) {
	t.Parallel()
	root := newCommand()
	root.InitDefaultCompletionCmd("completion")
	documented := documentedCommands(t)
	if len(documented) < 20 {
		t.Errorf("found only %d commands", len(documented))
	}
	named := map[string]bool{}
	for line, page := range documented {
		cmd, rest, err := root.Find(strings.Fields(line)[1:])
		if err != nil || cmd.HasSubCommands() {
			t.Errorf("%s names %q, which is no command: %v", page, line, err)
			continue
		}
		if filepath.Base(page) == "tool.md" {
			named[cmd.CommandPath()] = true
		}
		cmd.InitDefaultHelpFlag()
		for _, found := range flagName.FindAllStringSubmatch(strings.Join(rest, " "), -1) {
			if !hasFlag(cmd, found[1]) {
				t.Errorf("%s names %q, and %s has no %s", page, line, cmd.CommandPath(), found[1])
			}
		}
	}
	flags := map[string]bool{"--help": true}
	var visit func(*cobra.Command)
	visit = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
		if cmd.Runnable() && cmd.Parent() != nil && cmd.Parent().Name() != "completion" && !named[cmd.CommandPath()] {
			t.Errorf("docs/tool.md does not name %s", cmd.CommandPath())
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			flags["--"+f.Name] = true
			if f.Shorthand != "" {
				flags["-"+f.Shorthand] = true
			}
		})
	}
	visit(root)
	for _, page := range toolDocs {
		text, err := os.ReadFile(filepath.Join("..", "..", "docs", page))
		if err != nil {
			t.Fatal(err)
		}
		for _, span := range codeSpan.FindAllStringSubmatch(string(text), -1) {
			for _, found := range flagName.FindAllStringSubmatch(span[1], -1) {
				if !flags[found[1]] {
					t.Errorf("docs/%s names %s, which no command has", page, found[1])
				}
			}
		}
	}
}

func hasFlag(cmd *cobra.Command, name string) bool {
	if long, is := strings.CutPrefix(name, "--"); is {
		return cmd.Flags().Lookup(long) != nil
	}
	return cmd.Flags().ShorthandLookup(strings.TrimPrefix(name, "-")) != nil
}
