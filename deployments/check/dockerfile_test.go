package check

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// instruction is one of a Dockerfile's, its continued lines joined.
type instruction struct{ name, arguments string }

func parseDockerfile(t *testing.T) []instruction {
	t.Helper()
	var all []instruction
	pending := ""
	for line := range strings.Lines(read(t, "deployments/Dockerfile")) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if rest, continued := strings.CutSuffix(line, `\`); continued {
			pending += rest
			continue
		}
		name, arguments, _ := strings.Cut(pending+line, " ")
		all, pending = append(all, instruction{name, strings.TrimSpace(arguments)}), ""
	}
	return all
}

// ignores is what .dockerignore leaves out of the build.
func ignores(t *testing.T) func(path string) bool {
	t.Helper()
	var patterns []*regexp.Regexp
	for line := range strings.Lines(read(t, ".dockerignore")) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if strings.ContainsAny(line, "!?[") {
			t.Fatalf("this test cannot read %q", line)
		}
		expression := regexp.QuoteMeta(strings.TrimPrefix(line, "**/"))
		expression = strings.ReplaceAll(expression, `\*`, `[^/]*`)
		if strings.HasPrefix(line, "**/") {
			expression = "(.*/)?" + expression
		}
		patterns = append(patterns, regexp.MustCompile("^"+expression+"(/.*)?$"))
	}
	return func(path string) bool {
		return slices.ContainsFunc(patterns, func(p *regexp.Regexp) bool { return p.MatchString(path) })
	}
}

// buildContext is a copy of what Docker would be given: the tree as git has it,
// without what .dockerignore names.
func buildContext(t *testing.T) string {
	t.Helper()
	command := exec.CommandContext(t.Context(), "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	command.Dir = root
	output, err := command.Output()
	if err != nil {
		t.Fatalf("list the tree's files: %v", err)
	}
	ignored, dir := ignores(t), t.TempDir()
	for path := range strings.SplitSeq(strings.TrimRight(string(output), "\x00"), "\x00") {
		text, err := os.ReadFile(filepath.Join(root, path))
		if ignored(path) || os.IsNotExist(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, path), text)
	}
	return dir
}

func write(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// copyInto does a COPY of files and directories of the context.
func copyInto(t *testing.T, context, source, to string) {
	t.Helper()
	from := filepath.Join(context, source)
	info, err := os.Stat(from)
	if err != nil {
		t.Fatalf("COPY %s: %v", source, err)
	}
	if info.IsDir() {
		if err := filepath.WalkDir(from, func(path string, entry os.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			relative, err := filepath.Rel(from, path)
			if err != nil {
				return err
			}
			write(t, filepath.Join(to, relative), text)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return
	}
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(to, filepath.Base(source)), text)
}

const (
	checkVersion = "v9.8.7-check"
	// mostImageBytes bounds the programs together, and so the image.
	mostImageBytes = 100 << 20
)

// The first stage is done here as Docker would do it: its COPYs from the context,
// into a directory in place of /, and its RUNs in that.
func TestTheImage(t *testing.T) {
	t.Parallel()
	instructions := parseDockerfile(t)
	final := slices.Index(instructions, instruction{"FROM", "scratch"})
	if final < 0 {
		t.Fatal("the image begins with something")
	}
	stage, image := instructions[:final], instructions[final:]

	context, disk := buildContext(t), t.TempDir()
	workdir, ran := disk, 0
	environment := os.Environ()
	for _, i := range stage {
		switch i.name {
		case "FROM":
			want := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(read(t, "go.mod"))[1]
			if !strings.HasPrefix(i.arguments, "golang:"+want+"-") {
				t.Errorf("the build begins FROM %s, and go.mod wants Go %s", i.arguments, want)
			}
		case "WORKDIR":
			workdir = filepath.Join(disk, i.arguments)
			if err := os.MkdirAll(workdir, 0o755); err != nil {
				t.Fatal(err)
			}
		case "COPY":
			words := strings.Fields(i.arguments)
			for _, source := range words[:len(words)-1] {
				copyInto(t, context, source, filepath.Join(workdir, words[len(words)-1]))
			}
		case "ARG":
			name, _, _ := strings.Cut(i.arguments, "=")
			environment = append(environment, name+"="+checkVersion)
		case "RUN":
			script := strings.ReplaceAll(i.arguments, " /out/", " "+disk+"/out/")
			command := exec.CommandContext(t.Context(), "sh", "-euc", script)
			command.Dir, command.Env = workdir, environment
			if output, err := command.CombinedOutput(); err != nil {
				t.Fatalf("RUN %s: %v\n%s", script, err, output)
			}
			ran++
		default:
			t.Fatalf("this test cannot do %s", i.name)
		}
	}
	if ran == 0 {
		t.Fatal("nothing was built")
	}

	t.Run("HasEveryProgramStaticAndSmall", func(t *testing.T) {
		t.Parallel()
		commands, err := os.ReadDir(filepath.Join(root, "cmd"))
		if err != nil {
			t.Fatal(err)
		}
		var size int64
		for _, entry := range commands {
			path := filepath.Join(disk, "out", entry.Name())
			text, err := os.ReadFile(path)
			if err != nil {
				t.Error(err)
				continue
			}
			size += int64(len(text))
			if !bytes.Contains(text, []byte(checkVersion)) {
				t.Errorf("%s does not know its version", entry.Name())
			}
			if bytes.Contains(text, []byte(disk)) {
				t.Errorf("%s names directories of the machine that built it", entry.Name())
			}
			binary, err := elf.NewFile(bytes.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			for _, segment := range binary.Progs {
				if segment.Type == elf.PT_INTERP || segment.Type == elf.PT_DYNAMIC {
					t.Errorf("%s is not static", entry.Name())
				}
			}
			if binary.Section(".debug_info") != nil || binary.Section(".symtab") != nil {
				t.Errorf("%s has its symbols", entry.Name())
			}
		}
		t.Logf("the programs come to %d MiB", size>>20)
		if size > mostImageBytes {
			t.Errorf("the programs come to %d bytes", size)
		}
	})

	t.Run("IsMadeOfNothingElseAndRunsAsNobody", func(t *testing.T) {
		t.Parallel()
		said := map[string][]string{}
		for _, i := range image {
			said[i.name] = append(said[i.name], i.arguments)
		}
		for name, want := range map[string][]string{
			"FROM":   {"scratch"},
			"USER":   {"65532:65532"},
			"EXPOSE": {listenPort(t, "ingest") + " " + listenPort(t, "dispatcher")},
			"COPY":   {"--from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt", "--from=build /out/ /usr/local/bin/"},
			"CMD":    {`["/usr/local/bin/ingest"]`},
		} {
			if !slices.Equal(said[name], want) {
				t.Errorf("%s is %q, want %q", name, said[name], want)
			}
		}
		for _, name := range []string{"RUN", "ADD", "VOLUME"} {
			if said[name] != nil {
				t.Errorf("there is %s %q", name, said[name])
			}
		}
	})

	// As in the container: as nobody, on a root with nothing but the programs.
	t.Run("RunsWithNothingElseAsNobody", func(t *testing.T) {
		t.Parallel()
		if os.Getuid() != 0 {
			t.Skip("only root may change its root")
		}
		base := t.TempDir()
		bin := filepath.Join(base, "usr/local/bin")
		if err := os.MkdirAll(bin, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range services {
			if err := os.Link(filepath.Join(disk, "out", name), filepath.Join(bin, name)); err != nil {
				t.Fatal(err)
			}
			env := map[string]string{
				"FAIRHOOK_DATABASE_URL": "postgres://nobody@127.0.0.1:1/nowhere", "FAIRHOOK_ENCRYPTION_KEY": encryptionKey, "FAIRHOOK_LISTEN": "127.0.0.1:0",
			}
			command := []string{"/usr/local/bin/" + name}
			if name == "migrate" {
				command = append(command, "up")
			}
			looksForItsDatabase(t, command, env, &syscall.SysProcAttr{Chroot: base, Credential: &syscall.Credential{Uid: 65532, Gid: 65532}})
		}
	})

	t.Run("HasWhatTheDeploymentsRun", func(t *testing.T) {
		t.Parallel()
		for name, service := range ours(t, compose(t)) {
			base := filepath.Base(service.Command[0])
			if _, err := os.Stat(filepath.Join(disk, "out", base)); err != nil || filepath.Dir(service.Command[0]) != "/usr/local/bin" {
				t.Errorf("compose runs %v for %s: %v", service.Command, name, err)
			}
		}
	})
}
