// Command withpostgres runs a command with FAIRHOOK_DATABASE_URL set to an empty
// database on a private, throw-away Postgres server, and exits with its code.
// Without a command it only makes sure that there are Postgres programs to use,
// and installs them where there are none.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/fairhook/fairhook/pkg/postgres/pglocal"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, "withpostgres:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, command []string) (err error) {
	bin, err := pglocal.FindOrInstall(ctx, func(line string) { fmt.Println(line) })
	if err != nil {
		return err
	}
	if len(command) == 0 {
		fmt.Println("Postgres programs in", bin)
		return nil
	}
	server, err := pglocal.Start(ctx, pglocal.Config{BinDir: bin})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	child := exec.CommandContext(ctx, command[0], command[1:]...)
	child.Cancel = func() error { return child.Process.Signal(syscall.SIGTERM) }
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	child.Env = append(os.Environ(), "FAIRHOOK_DATABASE_URL="+server.URL("postgres"))
	return child.Run()
}
