// Package sql embeds Fairhook's numbered migrations. Files are append-only: a
// released one is never edited. Each holds one reason to change, and its header
// names the locks it takes.
package sql

import (
	"embed"
	"io/fs"
)

//go:embed migrations/*.sql
var files embed.FS

// Migrations is the numbered migration files, `001_name.sql` upwards, each with
// its up part above and its down part below the separator line that
// jackc/tern reads.
func Migrations() fs.FS {
	sub, err := fs.Sub(files, "migrations")
	if err != nil {
		panic(err) // the directory is part of the program
	}
	return sub
}
