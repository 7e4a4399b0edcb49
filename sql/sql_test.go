package sql_test

import (
	"flag"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/tern/v2/migrate"

	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/sql"
)

var update = flag.Bool("update", false, "write schema.sql anew")

// parts are the up and the down part of each migration file.
func parts(t *testing.T) map[string][2]string {
	t.Helper()
	names, err := migrate.FindMigrations(sql.Migrations()) // fails on gaps and duplicates
	if err != nil {
		t.Fatal(err)
	}
	all, err := fs.Glob(sql.Migrations(), "*")
	if err != nil || !slices.Equal(names, all) {
		t.Fatalf("the directory holds %q, of which %q are migrations, error %v", all, names, err)
	}
	files := map[string][2]string{}
	for _, name := range names {
		text, err := fs.ReadFile(sql.Migrations(), name)
		if err != nil {
			t.Fatal(err)
		}
		up, down, _ := strings.Cut(string(text), "---- create above / drop below ----")
		files[name] = [2]string{up, down}
	}
	return files
}

var (
	comment     = regexp.MustCompile(`--[^\n]*`)
	statement   = regexp.MustCompile(`(?is)\b(?:CREATE|ALTER|DROP)\s+(?:UNIQUE\s+)?(TABLE|INDEX|FUNCTION|TRIGGER|TYPE|VIEW|SCHEMA)\s+(?:CONCURRENTLY\s+)?(?:IF\s+(?:NOT\s+)?EXISTS\s+)?(\S+)[^;]*`)
	function    = regexp.MustCompile(`(?is)CREATE (?:OR REPLACE )?FUNCTION (\S+?)\(.*?\bAS \$\$`)
	nonBlocking = regexp.MustCompile(`(?i)CONCURRENTLY`)
)

func TestEveryMigrationFile(t *testing.T) {
	t.Parallel()
	for name, part := range parts(t) {
		up, down := part[0], part[1]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			header, _, _ := strings.Cut(up, "\n\n")
			if !strings.HasPrefix(header, "-- ") || !strings.Contains(header, "\n-- Locks: ") {
				t.Error(`must begin with a comment that says what it is for and, after "Locks:", which locks it takes`)
			}
			if strings.TrimSpace(comment.ReplaceAllString(down, "")) == "" {
				t.Error("has no down part")
			}
			if strings.Contains(down, "tern: disable-tx") || nonBlocking.MatchString(comment.ReplaceAllString(down, "")) {
				t.Error("going down is one transaction: its down part cannot opt out of it")
			}
			if nonBlocking.MatchString(comment.ReplaceAllString(up, "")) != strings.Contains(up, "\n---- tern: disable-tx ----\n") {
				t.Error("CONCURRENTLY and the line ---- tern: disable-tx ---- go together")
			}
			for _, match := range statement.FindAllStringSubmatch(comment.ReplaceAllString(up+down, ""), -1) {
				text, kind, object := match[0], strings.ToUpper(match[1]), match[2]
				switch {
				case regexp.MustCompile(`(?i)\bCASCADE\s*$`).MatchString(text) && strings.HasPrefix(strings.ToUpper(text), "DROP"):
					t.Errorf("%q could drop what is not ours", text)
				case kind == "INDEX" && strings.HasPrefix(strings.ToUpper(text), "CREATE"), kind == "TRIGGER":
					if !strings.Contains(text, " fairhook.") {
						t.Errorf("%q must name the table's schema", text)
					}
				case !strings.HasPrefix(object, "fairhook."):
					t.Errorf("%q must name the schema", text)
				}
			}
			for _, match := range function.FindAllStringSubmatch(up, -1) {
				if !strings.Contains(match[0], "SET search_path = pg_catalog") {
					t.Errorf("function %s must have a fixed search_path", match[1])
				}
			}
		})
	}
}

// schema.sql is what a review reads: the whole schema as the migrations leave
// it. It is not run by anything. It is made from the catalog and not by pg_dump,
// so that it comes out the same on every supported version of Postgres.
func TestSchemaFileShowsTheMigratedSchema(t *testing.T) {
	t.Parallel()
	got := describe(t, pgtest.DB(t))
	if *update {
		if err := os.WriteFile("schema.sql", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile("schema.sql")
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	have := strings.Split(string(want), "\n")
	for i, line := range strings.Split(got, "\n") {
		if i >= len(have) || line != have[i] {
			t.Fatalf("schema.sql is out of date from line %d on, where the database has %q: run go test ./sql -run TestSchemaFile -update", i+1, line)
		}
	}
	t.Fatal("schema.sql is out of date: the database has less. Run go test ./sql -run TestSchemaFile -update")
}

// describe writes the schema, partitions of particular days left out.
func describe(t *testing.T, db *pgxpool.Pool) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("-- The schema as the migrations leave it, River's part included, without the day\n" +
		"-- partitions of events and attempts. For reading: nothing runs this file.\n" +
		"-- Made by: go test ./sql -run TestSchemaFile -update\n")
	for _, section := range []string{
		// Enums
		`SELECT 'CREATE TYPE ' || format_type(t.oid, NULL) || ' AS ENUM (' ||
		        (SELECT string_agg(quote_literal(enumlabel), ', ' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid) || ');'
		 FROM pg_type t WHERE typnamespace = 'fairhook'::regnamespace AND typtype = 'e' ORDER BY typname`,
		// Functions
		`SELECT rtrim(pg_get_functiondef(p.oid), E'\n') || ';' ||
		        CASE WHEN proacl IS NOT NULL AND NOT EXISTS (SELECT FROM aclexplode(proacl) WHERE grantee = 0)
		             THEN E'\nREVOKE ALL ON FUNCTION ' || p.oid::regprocedure || ' FROM PUBLIC;' ELSE '' END
		 FROM pg_proc p WHERE pronamespace = 'fairhook'::regnamespace ORDER BY p.oid::regprocedure::text COLLATE "C"`,
		// Sequences
		`SELECT 'CREATE SEQUENCE ' || s.seqrelid::regclass || ' AS ' || format_type(s.seqtypid, NULL) || ';'
		 FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid WHERE c.relnamespace = 'fairhook'::regnamespace ORDER BY c.relname`,
		// Tables, each with its constraints, indexes and triggers
		`SELECT 'CREATE ' || CASE relpersistence WHEN 'u' THEN 'UNLOGGED ' ELSE '' END || 'TABLE ' || c.oid::regclass || E' (\n' ||
		    (SELECT string_agg('    ' || line, E',\n' ORDER BY kind, n, line COLLATE "C") FROM (
		        SELECT 1 AS kind, attnum AS n,
		               quote_ident(attname) || ' ' || format_type(atttypid, atttypmod) ||
		               CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END ||
		               coalesce(' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid), '') AS line
		        FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = attrelid AND d.adnum = attnum
		        WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
		        UNION ALL
		        SELECT 2, 0, 'CONSTRAINT ' || quote_ident(conname) || ' ' || pg_get_constraintdef(k.oid)
		        FROM pg_constraint k WHERE conrelid = c.oid AND contype IN ('c', 'f', 'p', 'u', 'x')
		    ) AS lines) || E'\n)' ||
		    coalesce(' PARTITION BY ' || pg_get_partkeydef(c.oid), '') ||
		    coalesce(E'\nWITH (' || array_to_string(reloptions, ', ') || ')', '') || ';' ||
		    coalesce(E'\n' || (SELECT string_agg(pg_get_indexdef(indexrelid) || ';', E'\n' ORDER BY indexrelid::regclass::text COLLATE "C")
		             FROM pg_index i WHERE indrelid = c.oid
		               AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid AND contype IN ('p', 'u', 'x'))), '') ||
		    coalesce(E'\n' || (SELECT string_agg(pg_get_triggerdef(g.oid) || ';', E'\n' ORDER BY tgname)
		             FROM pg_trigger g WHERE tgrelid = c.oid AND NOT tgisinternal), '')
		 FROM pg_class c
		 WHERE relnamespace = 'fairhook'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY relname`,
	} {
		rows, err := db.Query(t.Context(), section)
		if err != nil {
			t.Fatal(err)
		}
		texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range texts {
			b.WriteString("\n" + text + "\n")
		}
	}
	return b.String()
}
