-- Submitting events in SQL, inside the producer's own transaction: the event and
-- its deliveries exist if and only if that transaction commits. The rules are
-- those of POST /v1/events and POST /v1/webhooks/{id}/events; a table of cases
-- that runs through all ways in keeps them equal (pkg/enqueue).
-- Locks: none that matter; the tables are new.

-- Which database roles may submit for which tenants, besides the owner of the
-- schema, who may for all. fairhook.grant_submit and its like write it.
CREATE TABLE fairhook.submit_grants (
    role       name        NOT NULL,
    tenant     text,                 -- NULL: all
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE UNIQUE INDEX submit_grants_tenant_idx ON fairhook.submit_grants (tenant, role);
CREATE UNIQUE INDEX submit_grants_all_idx ON fairhook.submit_grants (role) WHERE tenant IS NULL;

-- What ingest has settings for, for submissions in SQL. One row at most; none
-- stands for the defaults. A table and not a configuration parameter, because
-- every session may change its own parameters.
CREATE TABLE fairhook.submit_settings (
    singleton          boolean NOT NULL PRIMARY KEY DEFAULT true CHECK (singleton),
    max_payload_bytes  integer NOT NULL DEFAULT 1048576 CHECK (max_payload_bytes > 0),
    strict_event_types boolean NOT NULL DEFAULT false -- refuse types that are not in event_types
);

-- A UUIDv7 for a moment, laid out as webhook.NewID does it: 48 bits of
-- milliseconds, the fraction of the millisecond in the next 12, and random bits.
CREATE FUNCTION fairhook.new_id(moment timestamptz) RETURNS uuid
LANGUAGE sql VOLATILE STRICT SET search_path = pg_catalog, pg_temp AS $$
    SELECT (lpad(to_hex(t.micros / 1000), 12, '0')
         || '7' || lpad(to_hex(t.micros % 1000 * 4096 / 1000), 3, '0')
         || right(replace(gen_random_uuid()::text, '-', ''), 16))::uuid
    FROM (SELECT (extract(epoch FROM moment) * 1000000)::bigint AS micros) AS t
$$;

-- What is wrong with a text (webhook.checkText), or NULL.
CREATE FUNCTION fairhook.text_fault(value text, max_bytes integer) RETURNS text
LANGUAGE sql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN octet_length(value) = 0 THEN 'must not be empty'
        WHEN octet_length(value) > max_bytes THEN format('must be at most %s bytes long', max_bytes)
        WHEN value COLLATE "C" ~ ('[' || chr(1) || '-' || chr(31) || chr(127) || ']') THEN 'must not contain control characters'
    END
$$;

-- What is wrong with an event's metadata (webhook.CheckMetadata), as an array of
-- at most 50 {"pointer", "detail"}.
CREATE FUNCTION fairhook.metadata_faults(metadata jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(jsonb_agg(jsonb_build_object('pointer', f.pointer, 'detail', f.detail)), '[]')
    FROM (
        SELECT '/metadata' AS pointer,
               'must be an object of strings, not '
               || CASE jsonb_typeof(metadata) WHEN 'array' THEN 'an array' ELSE 'a ' || jsonb_typeof(metadata) END AS detail
        WHERE jsonb_typeof(metadata) <> 'object'
        UNION ALL
        SELECT '/metadata', 'must have at most 50 keys'
        WHERE (SELECT count(*) FROM jsonb_object_keys(CASE jsonb_typeof(metadata) WHEN 'object' THEN metadata ELSE '{}' END)) > 50
        UNION ALL
        SELECT '/metadata/' || replace(replace(m.key, '~', '~0'), '/', '~1'), v.detail
        FROM jsonb_each(CASE jsonb_typeof(metadata) WHEN 'object' THEN metadata ELSE '{}' END) AS m,
             LATERAL (VALUES
                ('its name ' || fairhook.text_fault(m.key, 64)),
                (CASE
                    WHEN jsonb_typeof(m.value) IN ('array', 'object') THEN 'must be a string, not an ' || jsonb_typeof(m.value)
                    WHEN jsonb_typeof(m.value) = 'null' THEN 'must be a string, not null'
                    WHEN jsonb_typeof(m.value) <> 'string' THEN 'must be a string, not a ' || jsonb_typeof(m.value)
                    WHEN m.value <> '""' THEN fairhook.text_fault(m.value #>> '{}', 512)
                END)
             ) AS v (detail)
        WHERE v.detail IS NOT NULL
        LIMIT 50
    ) AS f
$$;

-- Submits one event, and returns its id. docs/transactional-submit.md says what
-- the parameters and the errors are.
--
-- It runs as the owner of the schema, so nothing in it may depend on what a
-- caller controls. Every name is qualified or found in pg_catalog. The caller's
-- role is not current_user, which is the owner here, but the one that SET ROLE
-- chose or else the one that logged in. A caller can give a parameter a collation
-- of its own, by which 'ACME' equals 'acme': what is compared are copies with the
-- database's collation, under which only equal bytes are equal. And the body is
-- parsed under the caller's standard_conforming_strings: no literal in it, or in
-- the functions it calls, may have a backslash.
CREATE FUNCTION fairhook.submit_event(
    tenant       text,
    type         text,
    payload      bytea,
    metadata     jsonb       DEFAULT NULL,
    occurred_at  timestamptz DEFAULT NULL,
    webhook_id   uuid        DEFAULT NULL,
    content_type text        DEFAULT NULL,
    unvalidated  boolean     DEFAULT false
) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    for_tenant     text   COLLATE "default" := submit_event.tenant;
    of_type        text   COLLATE "default" := submit_event.type;
    media_type     text   COLLATE "default" := submit_event.content_type;
    labels         jsonb  := nullif(nullif(submit_event.metadata, 'null'), '{}');
    webhook_tenant text   COLLATE "default";
    webhook_types  text[] COLLATE "default";
    patterns       text[] COLLATE "default"; -- all that the type falls under
    fault          text   COLLATE "default";
    faults         jsonb  := '[]';
    max_bytes      integer;
    known_only     boolean;
    bound          boolean; -- the type has a schema
    caller         name;
    member         regrole;
    granted        boolean;
    targets        uuid[];
    event_id       uuid;
BEGIN
    SELECT coalesce(max(s.max_payload_bytes), 1048576), coalesce(bool_or(s.strict_event_types), false)
    INTO max_bytes, known_only
    FROM fairhook.submit_settings AS s;
    IF octet_length(submit_event.payload) > max_bytes THEN
        RAISE EXCEPTION USING ERRCODE = 'FH413',
            MESSAGE = format('The payload is larger than the limit of %s bytes.', max_bytes);
    END IF;

    IF for_tenant IS NULL AND submit_event.webhook_id IS NULL THEN
        faults := '[{"pointer": "/webhook_id", "detail": "is required, unless there is a tenant"},
                    {"pointer": "/tenant", "detail": "is required, unless there is a webhook_id"}]';
    ELSE
        fault := fairhook.text_fault(for_tenant, 256);
        IF fault IS NOT NULL THEN
            faults := faults || jsonb_build_object('pointer', '/tenant', 'detail', fault);
        END IF;
    END IF;
    fault := CASE
        WHEN of_type IS NULL THEN 'is required'
        WHEN fairhook.text_fault(of_type, 256) IS NOT NULL THEN fairhook.text_fault(of_type, 256)
        WHEN of_type COLLATE "C" ~ '(^|[.])([.]|$)' THEN 'must be dot-delimited segments, none of them empty'
        WHEN of_type COLLATE "C" !~ '^[A-Za-z0-9_.-]+$' THEN 'must be dot-delimited segments of letters, digits, ''_'' and ''-'''
    END;
    IF fault IS NOT NULL THEN
        faults := faults || jsonb_build_object('pointer', '/type', 'detail', fault);
    END IF;
    fault := CASE WHEN submit_event.payload IS NULL THEN 'is required' END;
    IF fault IS NULL AND media_type IS NULL THEN
        -- JSON is allowed to have strings that are not UTF-8, as over REST. Read as
        -- LATIN1 every byte above 127 is some letter, so only the form counts.
        BEGIN
            PERFORM convert_from(submit_event.payload, 'LATIN1')::json;
        EXCEPTION WHEN invalid_text_representation OR character_not_in_repertoire THEN
            fault := 'is not JSON';
        WHEN statement_too_complex THEN
            fault := 'is nested too deeply';
        END;
    END IF;
    IF fault IS NOT NULL THEN
        faults := faults || jsonb_build_object('pointer', '/payload', 'detail', fault);
    END IF;
    IF labels IS NOT NULL THEN
        faults := faults || fairhook.metadata_faults(labels);
    END IF;
    IF submit_event.occurred_at < '0001-01-01 00:00:00+00' OR submit_event.occurred_at >= '10000-01-01 00:00:00+00' THEN
        faults := faults || jsonb_build_object('pointer', '/occurred_at', 'detail', 'must be between the years 1 and 9999');
    END IF;
    IF media_type COLLATE "C" !~ '^[ -~]+$' OR octet_length(media_type) > 256 THEN
        faults := faults || jsonb_build_object('pointer', '/content_type', 'detail', 'must be 1 to 256 characters of printable ASCII');
    END IF;
    IF faults <> '[]' THEN
        RAISE EXCEPTION USING ERRCODE = 'FH422', MESSAGE = 'The event breaks rules.', DETAIL = faults::text;
    END IF;

    IF submit_event.webhook_id IS NOT NULL THEN
        SELECT w.tenant, w.event_types INTO webhook_tenant, webhook_types
        FROM fairhook.webhooks AS w WHERE w.id = submit_event.webhook_id;
        for_tenant := coalesce(for_tenant, webhook_tenant);
    END IF;
    caller := CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role') END;
    member := to_regrole(quote_ident(caller));
    granted := pg_has_role(member, to_regrole(quote_ident(current_user)), 'USAGE') OR EXISTS (
        SELECT FROM fairhook.submit_grants AS g
        WHERE (g.tenant = for_tenant OR g.tenant IS NULL)
          AND pg_has_role(member, to_regrole(quote_ident(g.role)), 'USAGE'));
    IF granted IS NOT TRUE AND submit_event.tenant IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'FH403',
            MESSAGE = 'The database role may not submit events for this tenant.',
            HINT = format('The owner of the schema can allow it: SELECT fairhook.grant_submit(%L, %L).', caller, for_tenant);
    END IF;
    -- A webhook of somebody else's tenant is as good as none.
    IF submit_event.webhook_id IS NOT NULL
       AND (granted IS NOT TRUE OR webhook_tenant IS NULL OR webhook_tenant <> for_tenant) THEN
        RAISE EXCEPTION USING ERRCODE = 'FH404', MESSAGE = format('There is no webhook %s.', submit_event.webhook_id);
    END IF;

    SELECT t.schema IS NOT NULL INTO bound FROM fairhook.event_types AS t WHERE t.name = of_type;
    IF bound IS NULL AND known_only THEN
        fault := 'is not a declared event type';
    ELSIF bound AND submit_event.unvalidated IS NOT TRUE THEN
        fault := 'has a JSON Schema, which cannot be checked in SQL: submit over REST, or say that the event is unvalidated';
    END IF;
    patterns := ARRAY['*', of_type] || ARRAY(
        SELECT left(of_type, p.dot) || '*' FROM generate_series(1, length(of_type)) AS p (dot) WHERE substr(of_type, p.dot, 1) = '.');
    IF submit_event.webhook_id IS NULL THEN
        SELECT coalesce(array_agg(w.id ORDER BY w.id), '{}') INTO targets
        FROM fairhook.webhooks AS w WHERE w.tenant = for_tenant AND w.event_types && patterns;
    ELSIF webhook_types && patterns THEN
        targets := ARRAY[submit_event.webhook_id];
    ELSE
        fault := 'is not among the webhook''s event_types';
    END IF;
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'FH422', MESSAGE = 'The event breaks rules.',
            DETAIL = jsonb_build_array(jsonb_build_object('pointer', '/type', 'detail', fault))::text;
    END IF;

    event_id := fairhook.new_id(clock_timestamp());
    INSERT INTO fairhook.events (id, tenant, type, payload, content_type, occurred_at, metadata, webhook_ids)
    VALUES (event_id, for_tenant, of_type, submit_event.payload, nullif(media_type, 'application/json'),
            submit_event.occurred_at, labels, targets);
    -- The same rows and notifications as those of fairqueue.InsertSQL and
    -- fairqueue.Notifications.
    INSERT INTO fairhook.river_job (args, kind, max_attempts, queue, tags, unique_key, unique_states)
    SELECT jsonb_build_object('event_id', event_id, 'webhook_id', t.id), 'delivery', 10000, 'wh-' || t.id, '{}',
           uuid_send(event_id) || uuid_send(t.id), B'11110001'
    FROM unnest(targets) AS t (id);
    IF cardinality(targets) > 4 * 340 THEN
        PERFORM pg_notify('fairhook.river_insert', '{"queue":"fairhook"}');
    ELSE
        PERFORM pg_notify('fairhook.river_insert', '{"queue":"fairhook","l":"' || n.lanes || '"}')
        FROM (
            SELECT string_agg(translate(rtrim(encode(uuid_send(t.id), 'base64'), '='), '+/', '-_'), '' ORDER BY t.n) AS lanes
            FROM unnest(targets) WITH ORDINALITY AS t (id, n)
            GROUP BY (t.n - 1) / 340
        ) AS n;
    END IF;
    RETURN event_id;
END $$;

-- The same for a payload in the form in which SQL has it. The receiver gets the
-- bytes of the text in UTF-8; json keeps its text as it was written, and jsonb's
-- is what Postgres makes of it.
CREATE FUNCTION fairhook.submit_event(
    tenant       text,
    type         text,
    payload      text,
    metadata     jsonb       DEFAULT NULL,
    occurred_at  timestamptz DEFAULT NULL,
    webhook_id   uuid        DEFAULT NULL,
    content_type text        DEFAULT NULL,
    unvalidated  boolean     DEFAULT false
) RETURNS uuid
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT fairhook.submit_event(tenant, type, convert_to(payload, 'UTF8'), metadata, occurred_at, webhook_id, content_type, unvalidated)
$$;

CREATE FUNCTION fairhook.submit_event(
    tenant       text,
    type         text,
    payload      json,
    metadata     jsonb       DEFAULT NULL,
    occurred_at  timestamptz DEFAULT NULL,
    webhook_id   uuid        DEFAULT NULL,
    content_type text        DEFAULT NULL,
    unvalidated  boolean     DEFAULT false
) RETURNS uuid
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT fairhook.submit_event(tenant, type, convert_to(payload::text, 'UTF8'), metadata, occurred_at, webhook_id, content_type, unvalidated)
$$;

CREATE FUNCTION fairhook.submit_event(
    tenant       text,
    type         text,
    payload      jsonb,
    metadata     jsonb       DEFAULT NULL,
    occurred_at  timestamptz DEFAULT NULL,
    webhook_id   uuid        DEFAULT NULL,
    content_type text        DEFAULT NULL,
    unvalidated  boolean     DEFAULT false
) RETURNS uuid
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT fairhook.submit_event(tenant, type, convert_to(payload::text, 'UTF8'), metadata, occurred_at, webhook_id, content_type, unvalidated)
$$;

-- Lets a role, and those that inherit from it, submit for one tenant.
CREATE FUNCTION fairhook.grant_submit(role name, tenant text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF tenant IS NULL OR fairhook.text_fault(tenant, 256) IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('The tenant %s.', coalesce(fairhook.text_fault(tenant, 256), 'is required')),
            HINT = 'fairhook.grant_submit_all(role) is for all tenants.';
    END IF;
    PERFORM fairhook.set_submit_privileges(grant_submit.role, true);
    INSERT INTO fairhook.submit_grants (role, tenant) VALUES (grant_submit.role, grant_submit.tenant) ON CONFLICT DO NOTHING;
END $$;

-- Lets a role, and those that inherit from it, submit for every tenant.
CREATE FUNCTION fairhook.grant_submit_all(role name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM fairhook.set_submit_privileges(grant_submit_all.role, true);
    INSERT INTO fairhook.submit_grants (role, tenant) VALUES (grant_submit_all.role, NULL) ON CONFLICT DO NOTHING;
END $$;

-- Takes back what grant_submit gave. A grant for all tenants stays.
CREATE FUNCTION fairhook.revoke_submit(role name, tenant text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM fairhook.submit_grants AS g WHERE g.role = revoke_submit.role AND g.tenant = revoke_submit.tenant;
    IF NOT EXISTS (SELECT FROM fairhook.submit_grants AS g WHERE g.role = revoke_submit.role) THEN
        PERFORM fairhook.set_submit_privileges(revoke_submit.role, false);
    END IF;
END $$;

-- Takes back all that a role was granted.
CREATE FUNCTION fairhook.revoke_submit_all(role name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM fairhook.submit_grants AS g WHERE g.role = revoke_submit_all.role;
    PERFORM fairhook.set_submit_privileges(revoke_submit_all.role, false);
END $$;

-- The privileges that calling fairhook.submit_event takes. USAGE of the schema
-- is never taken back: the role may have it for other reasons.
CREATE FUNCTION fairhook.set_submit_privileges(role name, allowed boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    routine regprocedure;
BEGIN
    IF to_regrole(quote_ident(role)) IS NULL THEN
        IF NOT allowed THEN
            RETURN; -- it was dropped, and its privileges with it
        END IF;
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('role %I does not exist', role);
    END IF;
    IF allowed THEN
        EXECUTE format('GRANT USAGE ON SCHEMA fairhook TO %I', role);
    END IF;
    FOR routine IN
        SELECT p.oid FROM pg_proc AS p WHERE p.pronamespace = 'fairhook'::regnamespace AND p.proname = 'submit_event'
    LOOP
        IF allowed THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', routine, role);
        ELSE
            EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM %I', routine, role);
        END IF;
    END LOOP;
END $$;

REVOKE ALL ON FUNCTION fairhook.new_id(timestamptz) FROM PUBLIC;
REVOKE ALL ON FUNCTION fairhook.text_fault(text, integer) FROM PUBLIC;
REVOKE ALL ON FUNCTION fairhook.metadata_faults(jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION fairhook.submit_event(text, text, bytea, jsonb, timestamptz, uuid, text, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION fairhook.submit_event(text, text, text, jsonb, timestamptz, uuid, text, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION fairhook.submit_event(text, text, json, jsonb, timestamptz, uuid, text, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION fairhook.submit_event(text, text, jsonb, jsonb, timestamptz, uuid, text, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION fairhook.grant_submit(name, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION fairhook.grant_submit_all(name) FROM PUBLIC;
REVOKE ALL ON FUNCTION fairhook.revoke_submit(name, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION fairhook.revoke_submit_all(name) FROM PUBLIC;
REVOKE ALL ON FUNCTION fairhook.set_submit_privileges(name, boolean) FROM PUBLIC;

---- create above / drop below ----

DROP FUNCTION fairhook.submit_event(text, text, jsonb, jsonb, timestamptz, uuid, text, boolean);
DROP FUNCTION fairhook.submit_event(text, text, json, jsonb, timestamptz, uuid, text, boolean);
DROP FUNCTION fairhook.submit_event(text, text, text, jsonb, timestamptz, uuid, text, boolean);
DROP FUNCTION fairhook.submit_event(text, text, bytea, jsonb, timestamptz, uuid, text, boolean);
DROP FUNCTION fairhook.grant_submit(name, text);
DROP FUNCTION fairhook.grant_submit_all(name);
DROP FUNCTION fairhook.revoke_submit(name, text);
DROP FUNCTION fairhook.revoke_submit_all(name);
DROP FUNCTION fairhook.set_submit_privileges(name, boolean);
DROP FUNCTION fairhook.metadata_faults(jsonb);
DROP FUNCTION fairhook.text_fault(text, integer);
DROP FUNCTION fairhook.new_id(timestamptz);
DROP TABLE fairhook.submit_settings;
DROP TABLE fairhook.submit_grants;
