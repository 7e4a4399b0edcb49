//go:build unix

package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fairhook/fairhook/pkg/client"
	"github.com/fairhook/fairhook/pkg/daemon"
	"github.com/fairhook/fairhook/pkg/postgres/pglocal"
)

// prepare finds out early what would fail late, and makes the data directory.
func (d *dev) prepare() error {
	if d.cfg.BinDir == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find the directory of this program: %w; name it with --bin-dir", err)
		}
		if self, err = filepath.EvalSymlinks(self); err != nil {
			return fmt.Errorf("find the directory of this program: %w; name it with --bin-dir", err)
		}
		d.cfg.BinDir = filepath.Dir(self)
	}
	for _, name := range []string{"migrate", "ingest", "dispatcher"} {
		info, err := os.Stat(d.program(name))
		if err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
			return fmt.Errorf("there is no program %s in %s; build it there (go build -o %s ./cmd/...) or name its directory with --bin-dir",
				name, d.cfg.BinDir, d.cfg.BinDir)
		}
	}
	if d.cfg.Listen != "" && !isFree(d.cfg.Listen) {
		return fmt.Errorf("cannot listen on %s, where perhaps another program does; choose another address with --listen", d.cfg.Listen)
	}
	if d.cfg.DataDir == "" {
		return nil
	}
	dir, err := filepath.Abs(d.cfg.DataDir)
	if err != nil {
		return fmt.Errorf("find the data directory: %w", err)
	}
	d.cfg.DataDir = dir
	// Others may pass, since Postgres may have to run as another user; what is
	// in there is closed.
	if err := os.MkdirAll(filepath.Join(dir, "log"), 0o755); err != nil {
		return fmt.Errorf("make the data directory: %w; choose another with --data-dir", err)
	}
	return nil
}

func (d *dev) program(name string) string { return filepath.Join(d.cfg.BinDir, name) }

// database starts the private Postgres, unless there is one to use, and returns
// the environment that leads to it.
func (d *dev) database(ctx context.Context) (map[string]string, error) {
	if d.cfg.DatabaseURL.IsSet() {
		d.out.step("Postgres: using the database of --database-url")
		return map[string]string{
			"FAIRHOOK_DATABASE_URL":        d.cfg.DatabaseURL.Reveal(),
			"FAIRHOOK_LISTEN_DATABASE_URL": d.cfg.DirectDatabaseURL().Reveal(),
		}, nil
	}
	config, kept := pglocal.Config{}, "in a temporary directory, removed at the end"
	if d.cfg.DataDir != "" {
		config.Dir, config.Durable = filepath.Join(d.cfg.DataDir, "postgres"), true
		kept = "kept in " + config.Dir
	}
	server, err := d.postgres(ctx, config, kept)
	if err != nil {
		return nil, err
	}
	return map[string]string{
		"FAIRHOOK_DATABASE_URL":        server.URL(""),
		"FAIRHOOK_LISTEN_DATABASE_URL": server.URL(""),
	}, nil
}

// postgres finds the programs and starts a private server. kept says where its
// data is.
func (d *dev) postgres(ctx context.Context, config pglocal.Config, kept string) (*pglocal.Server, error) {
	programs, err := pglocal.FindOrInstall(ctx, d.out.note)
	if err != nil {
		return nil, fmt.Errorf("find Postgres: %w; or name an existing database with --database-url", err)
	}
	d.out.step("Postgres programs found in %s", programs)

	config.BinDir = programs
	server, err := pglocal.Start(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("start Postgres: %w; or name an existing database with --database-url", err)
	}
	d.onStop("Postgres", server.Close)
	d.watch(server.Done(), func() *diedError {
		log := &childLog{}
		if text, err := os.ReadFile(server.LogFile()); err == nil {
			_, _ = log.Write(text)
		}
		return &diedError{name: "Postgres", log: "the end of its log:\n" + log.tail()}
	})
	d.out.step("Postgres started on 127.0.0.1:%d, with its data %s", server.Port(), kept)
	return server, nil
}

// keys settles the two keys: given, kept, or made. It reports whether the
// encryption key is new, so that it cannot open what is in the database.
func (d *dev) keys() (made bool, err error) {
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails
	if made, err = d.key(&d.cfg.EncryptionKey, "encryption.key", base64.StdEncoding.EncodeToString(key[:])); err != nil {
		return false, err
	}
	_, err = d.key(&d.cfg.BootstrapKey, "bootstrap.key", "fh_dev_"+strings.ToLower(rand.Text()))
	return made, err
}

func (d *dev) key(key *daemon.SecretString, file, fresh string) (made bool, err error) {
	if key.IsSet() {
		return false, nil
	}
	if d.cfg.DataDir == "" {
		*key = daemon.NewSecretString(fresh)
		return true, nil
	}
	path := filepath.Join(d.cfg.DataDir, file)
	kept, err := os.ReadFile(path)
	switch {
	case err == nil:
		*key = daemon.NewSecretString(strings.TrimSpace(string(kept)))
		return false, nil
	case !errors.Is(err, fs.ErrNotExist):
		return false, fmt.Errorf("read the key kept from an earlier run: %w", err)
	}
	if err := os.WriteFile(path, []byte(fresh+"\n"), 0o600); err != nil {
		return false, fmt.Errorf("keep the key for the next run: %w", err)
	}
	*key = daemon.NewSecretString(fresh)
	return true, nil
}

func (d *dev) migrate(ctx context.Context, database map[string]string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, migrateTimeout, fmt.Errorf("it took more than %s", migrateTimeout))
	defer cancel()
	c, err := d.start("migrate", []string{"up"}, database)
	if err != nil {
		return err
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		c.stop(stopTimeout)
		return fmt.Errorf("migrate the schema: %w", context.Cause(ctx))
	}
	if c.err != nil {
		return fmt.Errorf("migrate the schema: %w", c.died())
	}
	d.out.step("Schema is up to date (migrate up)")
	return nil
}

func (d *dev) receiver() (*receiver, error) {
	rc, err := startReceiver()
	if err != nil {
		return nil, fmt.Errorf("start the demo receiver: %w", err)
	}
	d.onStop("demo receiver", rc.close)
	d.out.step("Demo receiver listens on %s", rc.url)
	return rc, nil
}

// ingest starts the API and returns its URL.
func (d *dev) ingest(ctx context.Context, database map[string]string) (string, error) {
	var addresses []string
	switch {
	case d.cfg.Listen == "" && isFree(defaultListen):
		addresses = []string{defaultListen, anyAddress, anyAddress}
	case d.cfg.Listen == "":
		d.out.note(defaultListen + " is taken: the API listens elsewhere")
		addresses = []string{anyAddress, anyAddress}
	default:
		addresses = []string{d.cfg.Listen}
	}
	listen, err := d.serve(ctx, "ingest", addresses, database)
	if err != nil {
		return "", err
	}
	api := "http://" + reachable(listen)
	d.out.step("Ingest is ready: the API is %s", api)
	return api, nil
}

func (d *dev) dispatcher(ctx context.Context, database map[string]string) error {
	listen, err := d.serve(ctx, "dispatcher", []string{anyAddress, anyAddress}, database)
	if err != nil {
		return err
	}
	d.out.step("Dispatcher is ready: its metrics are http://%s/metrics", listen)
	return nil
}

// anyAddress stands for a free port of this machine.
const anyAddress = ""

// serve starts one of the processes that stay on the first of the addresses that
// nobody takes before it can, waits until it is ready, and returns its address.
func (d *dev) serve(ctx context.Context, name string, addresses []string, database map[string]string) (listen string, err error) {
	for _, listen := range addresses {
		if listen == anyAddress {
			if listen, err = freeAddress(); err != nil {
				return "", err
			}
		}
		var c *child
		if c, err = d.serveOn(ctx, name, listen, database); err == nil {
			d.onStop(name, func() error { c.stop(stopTimeout); return nil })
			d.watch(c.done, c.died)
			return listen, nil
		}
		if !strings.Contains(err.Error(), syscall.EADDRINUSE.Error()) {
			break
		}
	}
	return "", err
}

func (d *dev) serveOn(ctx context.Context, name, listen string, database map[string]string) (*child, error) {
	env := map[string]string{
		"FAIRHOOK_LISTEN":                listen,
		"FAIRHOOK_ENCRYPTION_KEY":        d.cfg.EncryptionKey.Reveal(),
		"FAIRHOOK_BOOTSTRAP_KEY":         d.cfg.BootstrapKey.Reveal(),
		"FAIRHOOK_ALLOW_PRIVATE_TARGETS": d.privateTargets(),
	}
	maps.Copy(env, database)
	c, err := d.start(name, nil, env)
	if err != nil {
		return nil, err
	}
	ready, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	last := waitReady(ready, c.done, "http://"+reachable(listen)+"/readyz")
	select {
	case <-c.done:
		return nil, c.died()
	default:
	}
	if last == nil {
		return c, nil
	}
	c.stop(stopTimeout)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, fmt.Errorf("%s did not become ready within %s: %w; the end of its log:\n%s", name, readyTimeout, last, c.log.tail())
}

func (d *dev) privateTargets() string {
	targets := []string{"127.0.0.0/8", "::1/128"}
	for _, prefix := range d.cfg.AllowPrivateTargets {
		if !slices.Contains(targets, prefix.String()) {
			targets = append(targets, prefix.String())
		}
	}
	return strings.Join(targets, ",")
}

// start starts a program of ours. Secrets go by its environment, which only its
// user can read.
func (d *dev) start(name string, args []string, env map[string]string) (*child, error) {
	env = maps.Clone(env)
	env["FAIRHOOK_LOG_LEVEL"], env["FAIRHOOK_LOG_FORMAT"] = d.cfg.LogLevel, d.cfg.LogFormat
	log := &childLog{name: name}
	if d.cfg.Verbose {
		log.out = d.out
	}
	if d.cfg.DataDir != "" {
		file, err := os.OpenFile(filepath.Join(d.cfg.DataDir, "log", name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open the log of %s: %w", name, err)
		}
		log.file = file
	}
	c, err := startChild(d.program(name), args, childEnviron(d.environ, env, !d.cfg.DatabaseURL.IsSet()), log)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), log.close())
	}
	return c, nil
}

// childEnviron is the inherited environment with ours on top. For a private
// database the PG* variables are left out: to Postgres clients they say what a
// URL does not, and are meant for another database.
func childEnviron(inherited []string, ours map[string]string, private bool) []string {
	environ := slices.DeleteFunc(slices.Clone(inherited), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		_, replaced := ours[name]
		return replaced || private && strings.HasPrefix(name, "PG")
	})
	for name, value := range ours {
		environ = append(environ, name+"="+value)
	}
	return environ
}

// adopt looks at what a database that is not new already holds: demo webhooks of
// runs that could not remove theirs. That secrets in it open with the key has been
// ingest's to check.
func (d *dev) adopt(ctx context.Context, c *client.Client, keyMade bool) error {
	if !d.cfg.DatabaseURL.IsSet() && d.cfg.DataDir == "" {
		return nil
	}
	if err := removeDemoWebhooks(ctx, c); err != nil {
		return err
	}
	if keyMade && d.cfg.DataDir == "" {
		d.out.note("to use this database again: FAIRHOOK_ENCRYPTION_KEY=" + d.cfg.EncryptionKey.Reveal())
	}
	d.onStop("demo webhook", func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		// Where this fails, because the API is gone, the next run does it.
		_ = removeDemoWebhooks(ctx, c)
		return nil
	})
	return nil
}
