-- Ordered delivery: what a webhook asks for, by which key an event has its place, and
-- where a job stands in its lane because of that.
-- Locks: ACCESS EXCLUSIVE on webhooks, events and lane_owners for an instant; the defaults
-- are constants, so no row is rewritten. SHARE on webhooks and river_job while three
-- partial indexes are built, which no row is in yet: river_job is read to its end.

ALTER TABLE fairhook.webhooks
    ADD COLUMN ordering            text NOT NULL DEFAULT 'none'
        CONSTRAINT webhooks_ordering_check CHECK (ordering IN ('none', 'strict', 'key')),
    ADD COLUMN ordering_skip_after integer; -- NULL: a head that fails blocks until its max_age_seconds

ALTER TABLE fairhook.events
    ADD COLUMN ordering_key text; -- NULL: it has no place beside others of a webhook ordered by key

-- What a lane's jobs are arranged for: 'changing' from the moment its webhook's ordering
-- was changed until a dispatcher has seen to that.
ALTER TABLE fairhook.lane_owners
    ADD COLUMN ordering text NOT NULL DEFAULT 'none'
        CONSTRAINT lane_owners_ordering_check CHECK (ordering IN ('none', 'strict', 'key', 'changing'));

-- Looked into for every delivery that is accepted, and for every lane that is fetched
-- from: the few webhooks that are ordered.
CREATE INDEX webhooks_ordered_idx ON fairhook.webhooks (id, ordering) WHERE ordering <> 'none';

-- The priority of a delivery's job is its place in its lane. The number is part of River's
-- index of lanes, so that what is out of place in a lane is found without looking at the
-- rest. 1: of a lane without order; 2: without a key, in a lane ordered by key; 3: with one;
-- 4: of a lane in strict order.

-- The deliveries that have not ended of lanes in strict order, and of each key of lanes
-- ordered by key, in the order of their acceptance: that of their ids. id + 0, since for
-- the smallest id alone the planner may walk the primary key.
CREATE INDEX river_job_strict_idx ON fairhook.river_job (queue, (id + 0))
    WHERE priority = 4 AND finalized_at IS NULL;
CREATE INDEX river_job_key_idx ON fairhook.river_job (queue, (args->>'ordering_key') COLLATE "C", id)
    WHERE priority = 3 AND finalized_at IS NULL;

-- From the transaction that changes a webhook's ordering on, nobody fetches from its lane
-- by the old one.
CREATE FUNCTION fairhook.webhooks_reordered() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO fairhook.lane_owners (webhook_id, owner, until, ordering) VALUES (NEW.id, '', now(), 'changing')
    ON CONFLICT (webhook_id) DO UPDATE SET ordering = 'changing';
    RETURN NULL;
END $$;

CREATE TRIGGER webhooks_reordered AFTER UPDATE OF ordering ON fairhook.webhooks
    FOR EACH ROW WHEN (OLD.ordering <> NEW.ordering) EXECUTE FUNCTION fairhook.webhooks_reordered();

REVOKE ALL ON FUNCTION fairhook.webhooks_reordered() FROM PUBLIC;

-- fairhook.submit_event takes an ordering_key. A function with one more parameter is
-- another function, and two of that name would make a call ambiguous.
DROP FUNCTION fairhook.submit_event(text, text, jsonb, jsonb, timestamptz, uuid, text, boolean);
DROP FUNCTION fairhook.submit_event(text, text, json, jsonb, timestamptz, uuid, text, boolean);
DROP FUNCTION fairhook.submit_event(text, text, text, jsonb, timestamptz, uuid, text, boolean);
DROP FUNCTION fairhook.submit_event(text, text, bytea, jsonb, timestamptz, uuid, text, boolean);

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
    unvalidated  boolean     DEFAULT false,
    ordering_key text        DEFAULT NULL
) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    for_tenant     text   COLLATE "default" := submit_event.tenant;
    of_type        text   COLLATE "default" := submit_event.type;
    media_type     text   COLLATE "default" := submit_event.content_type;
    order_key      text   COLLATE "default" := submit_event.ordering_key;
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
    fault := fairhook.text_fault(order_key, 256);
    IF fault IS NOT NULL THEN
        faults := faults || jsonb_build_object('pointer', '/ordering_key', 'detail', fault);
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
    INSERT INTO fairhook.events (id, tenant, type, payload, content_type, occurred_at, metadata, webhook_ids, ordering_key)
    VALUES (event_id, for_tenant, of_type, submit_event.payload, nullif(media_type, 'application/json'),
            submit_event.occurred_at, labels, targets, order_key);
    -- The same rows and notifications as those of fairqueue.InsertSQL and
    -- fairqueue.Notifications.
    INSERT INTO fairhook.river_job (args, kind, max_attempts, priority, queue, tags, unique_key, unique_states)
    SELECT CASE WHEN order_key IS NULL THEN jsonb_build_object('event_id', event_id, 'webhook_id', t.id)
                ELSE jsonb_build_object('event_id', event_id, 'webhook_id', t.id, 'ordering_key', order_key) END,
           'delivery', 10000,
           CASE (SELECT w.ordering FROM fairhook.webhooks AS w WHERE w.id = t.id AND w.ordering <> 'none')
                WHEN 'strict' THEN 4 WHEN 'key' THEN CASE WHEN order_key IS NULL THEN 2 ELSE 3 END ELSE 1 END,
           'wh-' || t.id, '{}',
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
    unvalidated  boolean     DEFAULT false,
    ordering_key text        DEFAULT NULL
) RETURNS uuid
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT fairhook.submit_event(tenant, type, convert_to(payload, 'UTF8'), metadata, occurred_at, webhook_id, content_type, unvalidated, ordering_key)
$$;

CREATE FUNCTION fairhook.submit_event(
    tenant       text,
    type         text,
    payload      json,
    metadata     jsonb       DEFAULT NULL,
    occurred_at  timestamptz DEFAULT NULL,
    webhook_id   uuid        DEFAULT NULL,
    content_type text        DEFAULT NULL,
    unvalidated  boolean     DEFAULT false,
    ordering_key text        DEFAULT NULL
) RETURNS uuid
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT fairhook.submit_event(tenant, type, convert_to(payload::text, 'UTF8'), metadata, occurred_at, webhook_id, content_type, unvalidated, ordering_key)
$$;

CREATE FUNCTION fairhook.submit_event(
    tenant       text,
    type         text,
    payload      jsonb,
    metadata     jsonb       DEFAULT NULL,
    occurred_at  timestamptz DEFAULT NULL,
    webhook_id   uuid        DEFAULT NULL,
    content_type text        DEFAULT NULL,
    unvalidated  boolean     DEFAULT false,
    ordering_key text        DEFAULT NULL
) RETURNS uuid
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT fairhook.submit_event(tenant, type, convert_to(payload::text, 'UTF8'), metadata, occurred_at, webhook_id, content_type, unvalidated, ordering_key)
$$;

REVOKE ALL ON FUNCTION fairhook.submit_event(text, text, bytea, jsonb, timestamptz, uuid, text, boolean, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION fairhook.submit_event(text, text, text, jsonb, timestamptz, uuid, text, boolean, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION fairhook.submit_event(text, text, json, jsonb, timestamptz, uuid, text, boolean, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION fairhook.submit_event(text, text, jsonb, jsonb, timestamptz, uuid, text, boolean, text) FROM PUBLIC;

-- Those who could call the function before can call it now.
DO $$
BEGIN
    PERFORM fairhook.set_submit_privileges(g.role, true)
    FROM (SELECT DISTINCT role FROM fairhook.submit_grants WHERE to_regrole(quote_ident(role)) IS NOT NULL) AS g;
END $$;

---- create above / drop below ----

-- The version before knows one place, and fetches from the others only when nothing waits
-- there. Nor would this migration, applied again, know whose order they had.
UPDATE fairhook.river_job SET priority = 1 WHERE queue LIKE 'wh-%' AND priority <> 1 AND finalized_at IS NULL;

DROP FUNCTION fairhook.submit_event(text, text, jsonb, jsonb, timestamptz, uuid, text, boolean, text);
DROP FUNCTION fairhook.submit_event(text, text, json, jsonb, timestamptz, uuid, text, boolean, text);
DROP FUNCTION fairhook.submit_event(text, text, text, jsonb, timestamptz, uuid, text, boolean, text);
DROP FUNCTION fairhook.submit_event(text, text, bytea, jsonb, timestamptz, uuid, text, boolean, text);

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

REVOKE ALL ON FUNCTION fairhook.submit_event(text, text, bytea, jsonb, timestamptz, uuid, text, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION fairhook.submit_event(text, text, text, jsonb, timestamptz, uuid, text, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION fairhook.submit_event(text, text, json, jsonb, timestamptz, uuid, text, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION fairhook.submit_event(text, text, jsonb, jsonb, timestamptz, uuid, text, boolean) FROM PUBLIC;

-- Those who could call the function before can call it now.
DO $$
BEGIN
    PERFORM fairhook.set_submit_privileges(g.role, true)
    FROM (SELECT DISTINCT role FROM fairhook.submit_grants WHERE to_regrole(quote_ident(role)) IS NOT NULL) AS g;
END $$;

DROP TRIGGER webhooks_reordered ON fairhook.webhooks;
DROP FUNCTION fairhook.webhooks_reordered();
DROP INDEX fairhook.river_job_key_idx;
DROP INDEX fairhook.river_job_strict_idx;
DROP INDEX fairhook.webhooks_ordered_idx;
ALTER TABLE fairhook.lane_owners DROP COLUMN ordering;
ALTER TABLE fairhook.events DROP COLUMN ordering_key;
ALTER TABLE fairhook.webhooks
    DROP COLUMN ordering_skip_after,
    DROP COLUMN ordering;
