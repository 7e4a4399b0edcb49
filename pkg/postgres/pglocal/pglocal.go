//go:build unix

// Package pglocal runs a private Postgres server: for the tests, and for trying
// Fairhook out on a machine without a database.
//
// A server listens on 127.0.0.1 and on a socket in its own directory, lets
// nobody in without its random password, and ends when the process that started
// it ends, however that happens. Nothing outside its directory is touched.
package pglocal

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	readyTimeout     = 30 * time.Second
	readyPoll        = 20 * time.Millisecond
	initTimeout      = 2 * time.Minute
	fastTimeout      = 15 * time.Second // of a shutdown that rolls back and writes a checkpoint
	immediateTimeout = 5 * time.Second  // of one that leaves recovery to the next start
	relaunchPause    = 100 * time.Millisecond

	maxSocketPath = 100 // bytes; the systems' limits begin at 104
	tailLines     = 20

	superuser = "postgres"
)

// Config says what server to start. The zero value is a throw-away server for
// tests.
type Config struct {
	// Dir holds everything of the server: cluster, socket, log and password.
	// One that holds a server from an earlier start is used again, with its
	// data and password. Empty: a new temporary directory, removed by Close.
	//
	// When the caller is root the server runs as another user, who must be able
	// to reach Dir.
	Dir string
	// BinDir holds initdb and postgres. Empty: what Find finds.
	BinDir string
	// Port on 127.0.0.1. 0: a free one.
	Port int
	// Durable keeps data over a crash of the machine. Without it the server
	// never waits for the disk, and a crash of the machine, but not of the
	// server, can destroy the cluster. Commits look the same to clients.
	Durable bool
	// InMemory puts the temporary directory into memory where the system has
	// plenty of it (Linux's /dev/shm) and TMPDIR is not set: making a database
	// is making hundreds of files, which some disks are slow at. It takes about
	// 150 MB while the server exists.
	InMemory bool
	// Settings are server settings in addition to the defaults, or instead of
	// them, as in postgresql.conf.
	Settings map[string]string
	// Logger hears of starts and stops. nil: nobody does.
	Logger *slog.Logger
}

// Server is a running server, or a stopped one that Restart starts again. Its
// methods are safe for concurrent use.
type Server struct {
	config   Config
	account  *account // who the server runs as; nil: who we are
	dir      string
	temp     bool
	lock     *os.File // held while the directory is ours
	port     int
	password string
	log      *slog.Logger

	mu      sync.Mutex // serialises starting and stopping; guards process
	process *process
}

// Start makes the cluster where there is none yet, starts the server, and
// returns once it answers. ctx bounds the start only; at most 30 s are spent on
// waiting for the first answer. An error has the end of the server's log.
func Start(ctx context.Context, config Config) (*Server, error) {
	s := &Server{config: config, log: config.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if s.account, err = unprivileged(); err != nil {
		return nil, err
	}
	if s.config.BinDir == "" {
		if s.config.BinDir, err = Find(ctx); err != nil {
			return nil, err
		}
	}
	if err := s.openDir(); err != nil {
		return nil, err
	}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) start(ctx context.Context) error {
	endOrphan(s.dataDir())
	if err := s.initialise(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.config.Port != 0 {
		s.port = s.config.Port
		return s.launch(ctx)
	}
	for attempt := 1; ; attempt++ {
		var err error
		if s.port, err = freePort(); err != nil {
			return err
		}
		// Somebody else may have taken the port in between.
		if err = s.launch(ctx); err == nil || attempt == 5 || !errors.Is(err, syscall.EADDRINUSE) {
			return err
		}
	}
}

// openDir finds or makes the directory, and makes it ours.
func (s *Server) openDir() (err error) {
	if s.config.Dir == "" {
		removeStale()
		s.temp = true
		s.dir, s.lock, err = makeTempDir(s.account, s.config.InMemory)
		return err
	}
	if s.dir, err = filepath.Abs(s.config.Dir); err != nil {
		return fmt.Errorf("directory of the server: %w", err)
	}
	// What is above it must let the server's user through.
	err = os.MkdirAll(filepath.Dir(s.dir), 0o755)
	if err == nil {
		err = os.Mkdir(s.dir, 0o700)
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make directory of the server: %w", err)
	}
	if s.lock, err = lockDir(s.dir, s.account); err != nil {
		return err
	}
	if s.account == nil {
		return nil
	}
	if err := s.account.reaches(filepath.Dir(s.dir)); err != nil {
		return errors.Join(fmt.Errorf("directory of the server: %w", err), s.lock.Close())
	}
	return nil
}

func (s *Server) dataDir() string      { return filepath.Join(s.dir, "data") }
func (s *Server) passwordFile() string { return filepath.Join(s.dir, "password") }

// LogFile is the path of the server's log.
func (s *Server) LogFile() string { return filepath.Join(s.dir, "server.log") }

// Port is the server's port on 127.0.0.1. It stays the same over restarts.
func (s *Server) Port() int { return s.port }

// URL is how to connect to a database of the server as its superuser. It stays
// valid over restarts. An empty name stands for the database "postgres".
func (s *Server) URL(database string) string {
	if database == "" {
		database = "postgres"
	}
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(superuser, s.password),
		Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// initialise makes the cluster, unless the directory has one.
func (s *Server) initialise(ctx context.Context) error {
	version, err := os.ReadFile(filepath.Join(s.dataDir(), "PG_VERSION"))
	if err == nil {
		return s.adopt(ctx, strings.TrimSpace(string(version)))
	}
	// An initdb that was interrupted leaves a directory without PG_VERSION.
	if err := os.RemoveAll(s.dataDir()); err != nil {
		return fmt.Errorf("remove half-made cluster: %w", err)
	}
	s.password = rand.Text()
	if err := os.WriteFile(s.passwordFile(), []byte(s.password), 0o600); err != nil {
		return fmt.Errorf("write password file: %w", err)
	}
	if err := s.account.own(s.passwordFile()); err != nil {
		return err
	}
	args := []string{
		"--pgdata", s.dataDir(), "--username", superuser, "--pwfile", s.passwordFile(),
		"--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions",
	}
	if !s.config.Durable {
		args = append(args, "--no-sync")
	}
	ctx, cancel := context.WithTimeout(ctx, initTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.config.BinDir, "initdb"), args...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	p, err := s.run(cmd)
	if err == nil {
		<-p.done
		err = p.err
	}
	if err != nil {
		// A cluster is there when PG_VERSION is: a failed one must not look made.
		return errors.Join(fmt.Errorf("initdb: %w: %s", err, tail(output.String())), os.RemoveAll(s.dataDir()))
	}
	return nil
}

// adopt uses a cluster from an earlier start.
func (s *Server) adopt(ctx context.Context, made string) error {
	major, err := versionOf(ctx, s.config.BinDir)
	if err != nil {
		return err
	}
	if made != strconv.Itoa(major) {
		return fmt.Errorf("the cluster in %s was made by Postgres %s, and the server found is %d: put version %s on the PATH, or use another directory",
			s.dir, made, major, made)
	}
	password, err := os.ReadFile(s.passwordFile())
	if err != nil {
		return fmt.Errorf("read the password of the cluster in %s: %w", s.dir, err)
	}
	s.password = string(password)
	return nil
}

// settings are the server's, in the order of their names.
func (s *Server) settings() []string {
	settings := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"port":                    strconv.Itoa(s.port),
		"unix_socket_directories": s.dir,
		"unix_socket_permissions": "0700",
		"max_connections":         "200",
		"logging_collector":       "off",
		"log_destination":         "stderr",
		"lc_messages":             "C", // what the server says is read below
		"timezone":                "UTC",
		"log_timezone":            "UTC",
	}
	if len(s.dir)+len("/.s.PGSQL.65535") > maxSocketPath {
		settings["unix_socket_directories"] = ""
	}
	if !s.config.Durable {
		settings["fsync"] = "off"
		settings["full_page_writes"] = "off"
	}
	if s.temp {
		// Its shared memory goes with its directory, also when it was killed.
		settings["dynamic_shared_memory_type"] = "mmap"
	}
	if s.config.InMemory {
		settings["max_wal_size"] = "128MB"
	}
	maps.Copy(settings, s.config.Settings)
	var args []string
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	return args
}

// launch starts the server process and waits until it answers. After a crash it
// is tried again while parts of the server before are still around.
func (s *Server) launch(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("no answer from Postgres within %s", readyTimeout))
	defer cancel()
	for {
		logged, err := s.launchOnce(ctx)
		switch {
		case err == nil:
			s.log.Debug("postgres started", "port", s.port, "directory", s.dir)
			return nil
		case strings.Contains(logged, "Address already in use"):
			err = fmt.Errorf("port %d of 127.0.0.1: %w", s.port, syscall.EADDRINUSE)
			if s.process == nil {
				return err // at the first start; later the port is ours, and is waited for
			}
		case !strings.Contains(logged, "pre-existing shared memory block") && !strings.Contains(logged, `"postmaster.pid" already exists`):
			return err
		}
		timer := time.NewTimer(relaunchPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

// launchOnce also returns what the server logged when it did not come up.
func (s *Server) launchOnce(ctx context.Context) (logged string, err error) {
	log, err := os.OpenFile(s.LogFile(), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return "", fmt.Errorf("open the server's log: %w", err)
	}
	defer log.Close()
	start, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return "", fmt.Errorf("open the server's log: %w", err)
	}
	cmd := exec.Command(filepath.Join(s.config.BinDir, "postgres"), append([]string{"-D", s.dataDir()}, s.settings()...)...)
	cmd.Stdout, cmd.Stderr = log, log
	p, err := s.run(cmd)
	if err != nil {
		return "", err
	}
	if err = s.ready(ctx, p); err == nil {
		s.process = p
		return "", nil
	}
	p.end()
	text, readErr := io.ReadAll(io.NewSectionReader(log, start, 1<<20))
	return string(text), errors.Join(fmt.Errorf("start Postgres: %w: %s", err, tail(string(text))), readErr)
}

// ready waits until the server answers, or has ended: whoever else listens on
// its port may never answer.
func (s *Server) ready(ctx context.Context, p *process) error {
	cfg, err := pgx.ParseConfig(s.URL(""))
	if err != nil {
		return fmt.Errorf("parse the server's URL: %w", err)
	}
	connecting, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-p.done:
			cancel()
		case <-connecting.Done():
		}
	}()
	ticker := time.NewTicker(readyPoll)
	defer ticker.Stop()
	for {
		conn, err := pgx.ConnectConfig(connecting, cfg)
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-p.done:
			return fmt.Errorf("it ended: %w", p.ending())
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		case <-ticker.C:
		}
	}
}

// Done is closed when the server process that runs now has ended, whoever ended
// it. After a Restart there is a new channel.
func (s *Server) Done() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process.done
}

// Stop ends the server in order: connections are closed, what was committed is
// on disk. The data stays for Restart. A server that does not end in time is
// ended the hard way, which is not an error. Stopping a stopped server does
// nothing.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil || s.process.ended() {
		return nil
	}
	s.process.signal(syscall.SIGINT)
	if !s.process.wait(fastTimeout) {
		s.log.Warn("postgres did not stop in time, and is ended the hard way", "port", s.port)
		s.process.end()
	}
	s.log.Debug("postgres stopped", "port", s.port)
	return nil
}

// Kill ends the server and all its backends with SIGKILL, like a crash of its
// machine would. The data stays for Restart, which goes through crash recovery.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil && !s.process.ended() {
		s.process.kill()
	}
}

// Restart starts a stopped or killed server again, on the same data and port;
// one that still runs is stopped first.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Stop(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.launch(ctx)
}

// Close stops the server for good, and removes its directory if that is a
// temporary one. Closing twice does nothing.
func (s *Server) Close() error {
	err := s.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lock == nil {
		return err
	}
	if s.temp {
		if removeErr := os.RemoveAll(s.dir); removeErr != nil {
			err = errors.Join(err, fmt.Errorf("remove directory of the server: %w", removeErr))
		}
	}
	err = errors.Join(err, s.lock.Close())
	s.lock = nil
	return err
}

// run starts one of Postgres' programs as the right user.
func (s *Server) run(cmd *exec.Cmd) (*process, error) {
	cmd.Dir = s.dir
	// Nothing of the caller's PG* variables and locale, which change what
	// these programs do.
	cmd.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "TZ=UTC"}
	if path, set := os.LookupEnv("LD_LIBRARY_PATH"); set {
		cmd.Env = append(cmd.Env, "LD_LIBRARY_PATH="+path)
	}
	cmd.SysProcAttr = processAttributes()
	if s.account != nil {
		cmd.SysProcAttr.Credential = s.account.credential()
	}
	return startProcess(cmd, s)
}

// freePort finds a port below the range from which systems take the ports of
// outgoing connections: one of those could take the server's port while it is
// stopped.
func freePort() (int, error) {
	const low, high = 20000, 32000
	for range 100 {
		port := low + mathrand.IntN(high-low)
		listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		return port, listener.Close()
	}
	return 0, fmt.Errorf("no free port between %d and %d on 127.0.0.1", low, high)
}

// tail is the last lines of a text, on one line.
func tail(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-tailLines):], " | ")
}
