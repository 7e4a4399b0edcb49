package enqueue_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/fairhook/fairhook/pkg/enqueue"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// newRole makes a role that is dropped when the test ends.
func (b *testBundle) newRole(t *testing.T, suffix, options string) string {
	t.Helper()
	name := "role_" + strings.TrimPrefix(query[string](t, b, `SELECT current_database()`), "fairhook_test_") + suffix
	b.exec(t, `CREATE ROLE `+name+` `+options)
	t.Cleanup(func() {
		_, err := b.Exec(context.Background(), `DROP OWNED BY `+name+` CASCADE; DROP ROLE `+name)
		if err != nil {
			t.Errorf("drop role: %v", err)
		}
	})
	return name
}

// login makes a role that may log in and nothing else, and logs in.
func (b *testBundle) login(t *testing.T, suffix string) (name string, conn *pgx.Conn) {
	t.Helper()
	name = b.newRole(t, suffix, `LOGIN PASSWORD 'secret'`)
	return name, b.connect(t, name)
}

func (b *testBundle) connect(t *testing.T, name string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), b.roleURL(t, name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// verdicts is what happens to events of tenants "mine" and "yours", as
// "mine=ok yours=forbidden".
func verdicts(t *testing.T, conn *pgx.Conn) string {
	t.Helper()
	var all []string
	for _, tenant := range []string{"mine", "yours"} {
		verdict := "ok"
		if _, err := submitIn(t.Context(), conn, paid(tenant)); err != nil {
			if verdict = string(webhook.ErrorCode(err)); verdict == "" {
				t.Fatal(err)
			}
		}
		all = append(all, tenant+"="+verdict)
	}
	return strings.Join(all, " ")
}

func wantVerdicts(t *testing.T, conn *pgx.Conn, want string) {
	t.Helper()
	if got := verdicts(t, conn); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func wantState(t *testing.T, err error, sqlState string) {
	t.Helper()
	var server *pgconn.PgError
	if !errors.As(err, &server) || server.Code != sqlState {
		t.Errorf("error is %v, want SQLSTATE %s", err, sqlState)
	}
}

const (
	onlyMine = "mine=ok yours=forbidden"
	both     = "mine=ok yours=ok"
	neither  = "mine=forbidden yours=forbidden"
)

func TestRole(t *testing.T) {
	t.Parallel()

	t.Run("SubmitsForTheTenantsItWasGrantedAndNoOther", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		mine, yours := b.hook(t, "mine"), b.hook(t, "yours")
		name, conn := b.login(t, "")
		wantVerdicts(t, conn, neither)
		b.exec(t, `SELECT fairhook.grant_submit($1, 'mine')`, name)
		wantVerdicts(t, conn, onlyMine)
		for _, tc := range []struct {
			event enqueue.Event
			code  webhook.Code
		}{
			{enqueue.Event{WebhookID: mine.ID}, ""},
			{enqueue.Event{WebhookID: mine.ID, Tenant: "mine"}, ""},
			{enqueue.Event{WebhookID: yours.ID}, webhook.CodeNotFound},
			{enqueue.Event{WebhookID: yours.ID, Tenant: "mine"}, webhook.CodeNotFound},
			{enqueue.Event{WebhookID: yours.ID, Tenant: "yours"}, webhook.CodeForbidden},
			{enqueue.Event{WebhookID: mine.ID, Tenant: "yours"}, webhook.CodeForbidden},
			{enqueue.Event{WebhookID: webhook.NewID(b.clock.Now())}, webhook.CodeNotFound},
		} {
			tc.event.Type, tc.event.Payload = "a", []byte(`1`)
			if _, err := submitIn(t.Context(), conn, tc.event); webhook.ErrorCode(err) != tc.code || tc.code == "" && err != nil {
				t.Errorf("%q to %s: %v, want code %q", tc.event.Tenant, tc.event.WebhookID, err, tc.code)
			}
		}
		if n := query[int](t, b, `SELECT count(*) FROM fairhook.events WHERE tenant <> 'mine' OR $1 = ANY (webhook_ids)`, yours.ID); n != 0 {
			t.Errorf("%d events got to another tenant", n)
		}
	})

	t.Run("CanDoNothingElse", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		name, conn := b.login(t, "")
		may := func() (rights []string) {
			rows, err := b.Query(t.Context(), `
				SELECT c.oid::regclass || ' ' || p FROM pg_class c, unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) p
				WHERE relnamespace = 'fairhook'::regnamespace AND relkind IN ('r', 'p', 'v') AND has_table_privilege($1, c.oid, p)
				UNION ALL
				SELECT c.oid::regclass::text FROM pg_class c
				WHERE relnamespace = 'fairhook'::regnamespace AND CASE relkind WHEN 'S' THEN has_sequence_privilege($1, c.oid, 'USAGE, SELECT, UPDATE') END
				UNION ALL
				SELECT 'create in the schema' WHERE has_schema_privilege($1, 'fairhook', 'CREATE')
				UNION ALL
				SELECT proname FROM pg_proc p
				WHERE pronamespace = 'fairhook'::regnamespace AND has_function_privilege($1, p.oid, 'EXECUTE')
				ORDER BY 1`, name)
			if err != nil {
				t.Fatal(err)
			}
			rights, err = pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				t.Fatal(err)
			}
			return rights
		}
		before := may()
		b.exec(t, `SELECT fairhook.grant_submit($1, 'mine')`, name)
		after := may()
		gained := slices.DeleteFunc(after, func(right string) bool { return slices.Contains(before, right) })
		if want := slices.Repeat([]string{"submit_event"}, 4); !slices.Equal(gained, want) {
			t.Errorf("gained %q, want %q", gained, want)
		}
		if privileged := query[int](t, b, `
			SELECT count(*) FROM pg_proc p WHERE pronamespace = 'fairhook'::regnamespace AND prosecdef
			AND has_function_privilege($1, p.oid, 'EXECUTE') AND proname <> 'submit_event'`, name); privileged != 0 {
			t.Errorf("may run %d other functions as the owner", privileged)
		}
		for _, attempt := range []string{
			`SELECT * FROM fairhook.events`, `DELETE FROM fairhook.river_job`, `SELECT * FROM fairhook.submit_grants`,
			`INSERT INTO fairhook.submit_grants VALUES (current_user, NULL)`,
			`SELECT fairhook.grant_submit(current_user, 'yours')`, `SELECT fairhook.grant_submit_all(current_user)`,
			`SELECT fairhook.set_submit_privileges(current_user, true)`, `SELECT fairhook.ensure_partitions('2020-01-01', '2020-01-01')`,
			`UPDATE fairhook.submit_settings SET max_payload_bytes = 1`, `SELECT fairhook.new_id(now())`,
		} {
			_, err := conn.Exec(t.Context(), attempt)
			wantState(t, err, "42501")
		}
	})

	t.Run("OfPublicMaySubmitNothing", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		name, conn := b.login(t, "")
		b.exec(t, `GRANT USAGE ON SCHEMA fairhook TO `+name)
		wantVerdicts(t, conn, neither)
		if n := query[int](t, b, `
			SELECT count(*) FROM pg_proc p, aclexplode(coalesce(proacl, acldefault('f', proowner))) a
			WHERE pronamespace = 'fairhook'::regnamespace AND grantee = 0
			AND proname ~ 'submit|new_id|text_fault|metadata_faults'`); n != 0 {
			t.Errorf("%d functions are open to PUBLIC", n)
		}
	})

	t.Run("NeedsATenantBesideThePrivilege", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		name, conn := b.login(t, "")
		b.exec(t, `GRANT USAGE ON SCHEMA fairhook TO `+name+`; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA fairhook TO `+name)
		_, err := submitIn(t.Context(), conn, paid("mine"))
		wantCode(t, err, webhook.CodeForbidden)
		if _, err := conn.Exec(t.Context(), `SELECT fairhook.submit_event('mine', 'a', '1')`); err == nil || !strings.Contains(err.(*pgconn.PgError).Hint, "grant_submit('"+name+"', 'mine')") {
			t.Errorf("error is %v", err)
		}
	})

	t.Run("MaySubmitForAllTenants", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		name, conn := b.login(t, "")
		for range 2 {
			b.exec(t, `SELECT fairhook.grant_submit_all($1)`, name)
		}
		wantVerdicts(t, conn, both)
	})

	t.Run("LosesWhatIsRevoked", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		name, conn := b.login(t, "")
		for range 2 {
			b.exec(t, `SELECT fairhook.grant_submit($1, 'mine'), fairhook.grant_submit($1, 'yours')`, name)
		}
		wantVerdicts(t, conn, both)
		b.exec(t, `SELECT fairhook.revoke_submit($1, 'yours')`, name)
		wantVerdicts(t, conn, onlyMine)
		b.exec(t, `SELECT fairhook.revoke_submit($1, 'mine')`, name)
		wantVerdicts(t, conn, neither)
		if _, err := conn.Exec(t.Context(), `SELECT fairhook.submit_event('mine', 'a', '1')`); err != nil {
			wantState(t, err, "42501") // the privilege has gone with the last tenant
		} else {
			t.Error("submitted")
		}
		b.exec(t, `SELECT fairhook.grant_submit($1, 'mine'), fairhook.grant_submit_all($1)`, name)
		wantVerdicts(t, conn, both)
		b.exec(t, `SELECT fairhook.revoke_submit_all($1)`, name)
		wantVerdicts(t, conn, neither)
		b.exec(t, `SELECT fairhook.revoke_submit_all('a_role_that_was_dropped')`)
	})

	t.Run("InheritsFromTheRolesItIsAMemberOf", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		group := b.newRole(t, "_group", `NOLOGIN`)
		b.exec(t, `SELECT fairhook.grant_submit($1, 'mine')`, group)
		name, conn := b.login(t, "")
		wantVerdicts(t, conn, neither)
		b.exec(t, `GRANT `+group+` TO `+name)
		wantVerdicts(t, conn, onlyMine)
		b.exec(t, `REVOKE `+group+` FROM `+name)
		wantVerdicts(t, conn, neither)
	})

	t.Run("IsTheOneThatSetRoleChose", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		mine, yours := b.newRole(t, "_mine", `NOLOGIN`), b.newRole(t, "_yours", `NOLOGIN`)
		b.exec(t, `SELECT fairhook.grant_submit($1, 'mine'), fairhook.grant_submit($2, 'yours')`, mine, yours)
		// The role that a pooler logs in as: it may become the others, and has none
		// of their rights itself.
		pooled := b.newRole(t, "_pool", `LOGIN NOINHERIT PASSWORD 'secret'`)
		b.exec(t, `GRANT `+mine+`, `+yours+` TO `+pooled)
		conn := b.connect(t, pooled)
		for _, step := range []struct{ statement, want string }{
			{`SELECT 1`, neither},
			{`SET ROLE ` + mine, onlyMine},
			{`SET ROLE ` + yours, "mine=forbidden yours=ok"},
			{`RESET ROLE`, neither},
		} {
			exec(t, conn, step.statement)
			if got := verdicts(t, conn); got != step.want {
				t.Errorf("after %s: %s, want %s", step.statement, got, step.want)
			}
		}
		// One that is more than the role it chose gives its own rights up.
		admin, err := pgx.Connect(t.Context(), b.url)
		if err != nil {
			t.Fatal(err)
		}
		defer admin.Close(t.Context())
		wantVerdicts(t, admin, both)
		exec(t, admin, `SET ROLE `+mine)
		wantVerdicts(t, admin, onlyMine)
		exec(t, admin, `RESET ROLE; SET SESSION AUTHORIZATION `+mine)
		wantVerdicts(t, admin, onlyMine)
	})

	t.Run("IsNotTheOwnerOfAFunctionInBetween", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		name, conn := b.login(t, "")
		b.exec(t, `CREATE SCHEMA app;
			CREATE FUNCTION app.submit(tenant text) RETURNS uuid LANGUAGE sql SECURITY DEFINER
			AS 'SELECT fairhook.submit_event(tenant, ''a'', ''1'')';
			GRANT USAGE ON SCHEMA app TO `+name)
		try := func(tenant string) error {
			_, err := conn.Exec(t.Context(), `SELECT app.submit($1)`, tenant)
			return err
		}
		wantState(t, try("mine"), "FH403")
		b.exec(t, `SELECT fairhook.grant_submit($1, 'mine')`, name)
		if err := try("mine"); err != nil {
			t.Error(err)
		}
		wantState(t, try("yours"), "FH403")
	})

	t.Run("IsSubmittedForByAnOwnerWhoIsNoSuperuser", func(t *testing.T) {
		t.Parallel()
		database := pgtest.Empty(t)
		b := &testBundle{Pool: database.Pool, url: database.URL}
		owner := b.newRole(t, "_owner", `LOGIN PASSWORD 'secret'`)
		b.exec(t, `GRANT CREATE ON DATABASE `+query[string](t, b, `SELECT current_database()`)+` TO `+owner)
		migrator, err := postgres.OpenMigrator(t.Context(), b.roleURL(t, owner), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(migrator.Up(t.Context()), migrator.Close()); err != nil {
			t.Fatal(err)
		}
		asOwner := b.connect(t, owner)
		wantVerdicts(t, asOwner, both)
		name, conn := b.login(t, "")
		wantVerdicts(t, conn, neither)
		exec(t, asOwner, `SELECT fairhook.grant_submit($1, 'mine')`, name)
		wantVerdicts(t, conn, onlyMine)
		b.exec(t, `GRANT `+owner+` TO `+name)
		wantVerdicts(t, conn, both)
	})

	t.Run("MustExistToBeGranted", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		for statement, state := range map[string]string{
			`SELECT fairhook.grant_submit('nobody_at_all', 'mine')`:                 "42704",
			`SELECT fairhook.grant_submit_all('nobody_at_all')`:                     "42704",
			`SELECT fairhook.grant_submit('public', 'mine')`:                        "42704",
			`SELECT fairhook.grant_submit(current_user, NULL)`:                      "22023",
			`SELECT fairhook.grant_submit(current_user, '')`:                        "22023",
			`SELECT fairhook.grant_submit(current_user, repeat('x', 257))`:          "22023",
			`SELECT fairhook.grant_submit('x; DROP TABLE fairhook.events', 'mine')`: "42704",
		} {
			_, err := b.Exec(t.Context(), statement)
			wantState(t, err, state)
		}
		if n := query[int](t, b, `SELECT count(*) FROM fairhook.submit_grants`); n != 0 {
			t.Errorf("%d grants", n)
		}
	})

	t.Run("MayHaveANameThatNeedsQuotes", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		name := `it's "` + b.newRole(t, "", `NOLOGIN`) // only for a name that no other test has
		b.exec(t, `CREATE ROLE `+pgx.Identifier{name}.Sanitize()+` LOGIN PASSWORD 'secret'`)
		t.Cleanup(func() {
			quoted := pgx.Identifier{name}.Sanitize()
			if _, err := b.Exec(context.Background(), `DROP OWNED BY `+quoted+` CASCADE; DROP ROLE `+quoted); err != nil {
				t.Error(err)
			}
		})
		b.exec(t, `SELECT fairhook.grant_submit($1, 'mine')`, name)
		conn := b.connect(t, name)
		wantVerdicts(t, conn, onlyMine)
		exec(t, conn, `SET ROLE `+pgx.Identifier{name}.Sanitize())
		wantVerdicts(t, conn, onlyMine)
	})
}

// TestHostileCaller plays a role that was granted one tenant and owns a schema.
func TestHostileCaller(t *testing.T) {
	t.Parallel()

	t.Run("CannotPutItsOwnFunctionsOperatorsTablesOrTypesInTheWay", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		w := b.hook(t, "mine")
		b.hook(t, "yours")
		name, conn := b.login(t, "")
		b.exec(t, `SELECT fairhook.grant_submit($1, 'mine')`, name)
		b.exec(t, `CREATE SCHEMA evil AUTHORIZATION `+name)
		if _, err := conn.Exec(t.Context(), evilSchema(t, b)); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{
			`evil`, `evil, pg_catalog`, `evil, fairhook, pg_catalog`, `pg_temp, evil, pg_catalog`, `pg_temp, evil, fairhook, pg_catalog`,
		} {
			exec(t, conn, `SET search_path = `+path)
			// By the extended protocol pgx would look types up, in evil.
			for call, state := range map[string]string{
				`fairhook.submit_event('mine', 'a', '1'::pg_catalog.text)`:                                            "",
				`fairhook.submit_event('mine', 'a', '1'::pg_catalog.bytea, '{"k":"v"}', occurred_at => '2026-01-01')`: "",
				`fairhook.submit_event('mine', 'a', '1'::pg_catalog.json, webhook_id => '` + w.ID.String() + `')`:     "",
				`fairhook.submit_event('mine', 'a', '1'::pg_catalog.jsonb)`:                                           "",
				`fairhook.submit_event('yours', 'a', '1'::pg_catalog.text)`:                                           "FH403",
				`fairhook.submit_event('mine', 'a', 'x'::pg_catalog.text)`:                                            "FH422",
			} {
				_, err := conn.PgConn().Exec(t.Context(), `SELECT `+call).ReadAll()
				if state == "" && err != nil {
					t.Errorf("%s: %s: %v", path, call, err)
				} else if state != "" {
					wantState(t, err, state)
				}
			}
		}
		if n := query[int](t, b, `SELECT count(*) FROM fairhook.events WHERE tenant = 'mine' AND webhook_ids = ARRAY[$1::uuid]`, w.ID); n != 20 {
			t.Errorf("%d events are in the real table, want 20", n)
		}
		if n := query[int](t, b, `SELECT count(*) FROM fairhook.river_job`); n != 20 {
			t.Errorf("%d jobs are in the real table, want 20", n)
		}
		exec(t, conn, `RESET search_path`)
		if n := query[int](t, conn, `SELECT (SELECT count(*) FROM evil.events) + (SELECT count(*) FROM evil.river_job) + (SELECT count(*) FROM pg_temp.events)`); n != 0 {
			t.Errorf("%d rows were written into the caller's tables", n)
		}

		// The schema is evil enough: without the fixed path the same calls fall for it.
		b.exec(t, `ALTER FUNCTION fairhook.submit_event(text, text, bytea, jsonb, timestamptz, uuid, text, boolean, text) RESET search_path`)
		exec(t, conn, `SET search_path = evil, pg_catalog`)
		if _, err := conn.PgConn().Exec(t.Context(), `SELECT fairhook.submit_event('mine', 'a', '1'::pg_catalog.bytea)`).ReadAll(); err == nil {
			t.Error("nothing of the caller's was in the way")
		}
	})

	t.Run("CannotPassForAnotherTenantByACollationOfItsOwn", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		theirs := b.hook(t, "MINE")
		name, conn := b.login(t, "")
		b.exec(t, `SELECT fairhook.grant_submit($1, 'mine')`, name)
		if _, err := conn.Exec(t.Context(), `CREATE COLLATION pg_temp.same (provider = icu, locale = 'und-u-ks-level1', deterministic = false)`); err != nil {
			t.Fatalf("this Postgres has no ICU, which every packaged one has: %v", err)
		}
		if !query[bool](t, conn, `SELECT 'mine' = 'MINE' COLLATE pg_temp.same`) {
			t.Fatal("the collation does not do what the attack needs")
		}
		for call, state := range map[string]string{
			`fairhook.submit_event('MINE' COLLATE pg_temp.same, 'a', '1')`:                                             "FH403",
			`fairhook.submit_event('MINE' COLLATE pg_temp.same, 'a', '1'::bytea)`:                                      "FH403",
			`fairhook.submit_event('mine' COLLATE pg_temp.same, 'a', '1', webhook_id => '` + theirs.ID.String() + `')`: "FH404",
			`fairhook.submit_event('mine', 'a' COLLATE pg_temp.same, '1', webhook_id => '` + theirs.ID.String() + `')`: "FH404",
		} {
			_, err := conn.Exec(t.Context(), `SELECT `+call)
			wantState(t, err, state)
		}
		// And it does no harm to what is allowed, nor do two that contradict each other.
		exec(t, conn, `SELECT fairhook.submit_event('mine' COLLATE pg_temp.same, 'A', '1')`)
		exec(t, conn, `SELECT fairhook.submit_event(m, 'A' COLLATE "C", '1'::bytea) FROM (SELECT 'mine' COLLATE pg_temp.same AS m) AS t`)
		if n := query[int](t, b, `SELECT count(*) FROM fairhook.river_job`); n != 0 {
			t.Errorf("%d deliveries to somebody else's webhook", n)
		}
	})

	t.Run("CannotChangeTheLimitByAParameter", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		name, conn := b.login(t, "")
		b.exec(t, `SELECT fairhook.grant_submit($1, 'mine')`, name)
		exec(t, conn, `SET fairhook.max_payload_bytes = 10000000; SET bytea_output = 'escape'; SET standard_conforming_strings = off;
			SET array_nulls = off; SET transform_null_equals = on; SET DateStyle = 'German'; SET TimeZone = 'Asia/Kathmandu'; SET jit = off; SET plan_cache_mode = force_generic_plan`)
		event := paid("mine")
		event.Payload = fmt.Appendf(nil, `"%s"`, strings.Repeat("x", 1<<20))
		_, err := submitIn(t.Context(), conn, event)
		wantCode(t, err, webhook.CodeTooLarge)
		wantVerdicts(t, conn, onlyMine)
		// Under standard_conforming_strings = off a backslash in a literal means
		// something else, so functions that run as their owner have none.
		if n := query[int](t, b, `SELECT count(*) FROM pg_proc WHERE pronamespace = 'fairhook'::regnamespace
			AND (prosecdef OR proname IN ('new_id', 'text_fault', 'metadata_faults')) AND position(chr(92) IN prosrc) > 0`); n != 0 {
			t.Errorf("%d functions have a backslash", n)
		}
	})
}

// evilSchema is a schema that has something by the name of everything that
// submit_event could mean, and fails or lies when it is used.
func evilSchema(t *testing.T, b *testBundle) string {
	t.Helper()
	var script strings.Builder
	script.WriteString(`SET search_path = pg_catalog;
		CREATE DOMAIN evil.text AS integer; CREATE DOMAIN evil.uuid AS integer; CREATE DOMAIN evil.json AS integer;
		CREATE DOMAIN evil.jsonb AS integer; CREATE DOMAIN evil.regrole AS integer; CREATE DOMAIN evil.name AS integer;
	`)
	for _, schema := range []string{"evil", "pg_temp"} {
		for _, table := range []string{"events", "river_job", "webhooks", "submit_grants", "submit_settings", "event_types", "pg_roles", "pg_proc"} {
			fmt.Fprintf(&script, "CREATE TABLE %s.%s (id uuid, role name, tenant text, args jsonb);\n", schema, table)
		}
	}
	script.WriteString(`INSERT INTO evil.submit_grants (role, tenant) VALUES (current_user, NULL);
		INSERT INTO pg_temp.submit_grants (role, tenant) VALUES (current_user, NULL);
	`)
	// Every function that the body of ours calls, with the very types of the
	// real one: an unqualified call would find this one first.
	rows, err := b.Query(t.Context(), `
		SELECT DISTINCT p.proname, pg_get_function_identity_arguments(p.oid), format_type(p.prorettype, NULL)
		FROM pg_proc p JOIN pg_proc ours ON ours.pronamespace = 'fairhook'::regnamespace
		WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND NOT p.proretset AND p.provariadic = 0
		  AND p.prorettype NOT IN ('internal'::regtype, 'cstring'::regtype, 'trigger'::regtype)
		  AND pg_get_function_identity_arguments(p.oid) !~ 'internal|any|cstring|OUT|VARIADIC'
		  AND ours.proname IN ('submit_event', 'new_id', 'text_fault', 'metadata_faults')
		  AND ours.prosrc ~ ('\m' || p.proname || '\(')
		UNION ALL
		SELECT proname, pg_get_function_identity_arguments(oid), format_type(prorettype, NULL)
		FROM pg_proc WHERE pronamespace = 'fairhook'::regnamespace AND proname IN ('new_id', 'text_fault', 'metadata_faults')`)
	if err != nil {
		t.Fatal(err)
	}
	functions := 0
	var function, arguments, result string
	_, err = pgx.ForEachRow(rows, []any{&function, &arguments, &result}, func() error {
		functions++
		fmt.Fprintf(&script, "CREATE FUNCTION evil.%s(%s) RETURNS %s LANGUAGE plpgsql AS $f$ BEGIN RAISE EXCEPTION 'caught as %%', current_user; END $f$;\n",
			pgx.Identifier{function}.Sanitize(), arguments, result)
		return nil
	})
	if err != nil || functions < 15 {
		t.Fatalf("found %d functions to stand in for, %v", functions, err)
	}
	// Operators on exactly the types used: equality of texts would grant
	// everything.
	for _, operator := range []struct{ name, left, right, result string }{
		{"=", "text", "text", "boolean"},
		{"<>", "text", "text", "boolean"},
		{"=", "name", "name", "boolean"},
		{"=", "uuid", "uuid", "boolean"},
		{"~", "text", "text", "boolean"},
		{"!~", "text", "text", "boolean"},
		{"||", "text", "text", "text"},
		{"||", "bytea", "bytea", "bytea"},
		{"||", "jsonb", "jsonb", "jsonb"},
		{"&&", "text[]", "text[]", "boolean"},
		{">", "integer", "integer", "boolean"},
		{"<>", "jsonb", "jsonb", "boolean"},
		{"=", "jsonb", "jsonb", "boolean"},
		{"||", "text", "uuid", "text"},
		{"/", "bigint", "bigint", "bigint"},
		{"#>>", "jsonb", "text[]", "text"},
	} {
		lie := map[string]string{
			"boolean": "true", "text": "'evil'::text", "bytea": "'evil'::bytea", "jsonb": "'[]'::jsonb", "bigint": "1::bigint",
		}[operator.result]
		function := fmt.Sprintf("lie_%x_%s", operator.name, strings.Trim(operator.left+operator.right, "[]"))
		function = strings.NewReplacer("[", "", "]", "").Replace(function)
		fmt.Fprintf(&script, "CREATE FUNCTION evil.%s(a %s, b %s) RETURNS %s LANGUAGE sql AS $f$ SELECT %s $f$;\nCREATE OPERATOR evil.%s (leftarg = %s, rightarg = %s, function = evil.%s);\n",
			function, operator.left, operator.right, operator.result, lie, operator.name, operator.left, operator.right, function)
	}
	return script.String()
}
