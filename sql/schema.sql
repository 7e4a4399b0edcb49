-- The schema as the migrations leave it, River's part included, without the day
-- partitions of events and attempts. For reading: nothing runs this file.
-- Made by: go test ./sql -run TestSchemaFile -update

CREATE TYPE fairhook.river_job_state AS ENUM ('available', 'cancelled', 'completed', 'discarded', 'pending', 'retryable', 'running', 'scheduled');

CREATE OR REPLACE FUNCTION fairhook.api_key_secrets_notify()
 RETURNS trigger
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog'
AS $function$
BEGIN
    PERFORM pg_notify('fairhook.catalog', 'key ' || encode(k.hash, 'hex'))
    FROM fairhook.api_keys k
    WHERE k.id = CASE TG_OP WHEN 'DELETE' THEN OLD.key_id ELSE NEW.key_id END;
    RETURN NULL;
END $function$;

CREATE OR REPLACE FUNCTION fairhook.api_keys_notify()
 RETURNS trigger
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog'
AS $function$
BEGIN
    IF TG_OP = 'UPDATE' AND to_jsonb(OLD) - 'last_used_at' = to_jsonb(NEW) - 'last_used_at' THEN
        RETURN NULL;
    END IF;
    PERFORM pg_notify('fairhook.catalog', 'key ' || encode(CASE TG_OP WHEN 'DELETE' THEN OLD.hash ELSE NEW.hash END, 'hex'));
    RETURN NULL;
END $function$;

CREATE OR REPLACE FUNCTION fairhook.drop_expired_partition(retention interval)
 RETURNS date
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET lock_timeout TO '200ms'
 SET "TimeZone" TO 'UTC'
 SET enable_seqscan TO 'off'
AS $function$
DECLARE
    day date;
BEGIN
    IF retention IS NULL OR retention < interval '1 day' THEN
        RAISE EXCEPTION 'drop_expired_partition: a retention of % is less than a day', retention;
    END IF;
    -- ensure_partitions changes the same tables.
    IF NOT pg_try_advisory_xact_lock(hashtextextended('fairhook.ensure_partitions', 0)) THEN
        RETURN NULL;
    END IF;
    SELECT min(d) INTO day FROM fairhook.expired_partitions(retention) d;
    IF day IS NULL THEN
        RETURN NULL;
    END IF;
    IF EXISTS (
        SELECT FROM fairhook.river_job
        WHERE unique_key < uuid_send(fairhook.uuid_floor((day + 1)::timestamptz))
          AND unique_key IS NOT NULL AND unique_states IS NOT NULL
          AND fairhook.river_job_state_in_bitmask(unique_states, state)
          AND CASE WHEN kind = 'delivery' THEN true ELSE false END -- by no index but the unique one
    ) THEN
        RAISE EXCEPTION 'drop_expired_partition: deliveries of % are alive', day USING ERRCODE = 'object_in_use';
    END IF;
    EXECUTE format('DROP TABLE IF EXISTS fairhook.%I, fairhook.%I',
        'events_' || to_char(day, 'YYYYMMDD'), 'attempts_' || to_char(day, 'YYYYMMDD'));
    RETURN day;
END $function$;
REVOKE ALL ON FUNCTION fairhook.drop_expired_partition(interval) FROM PUBLIC;

CREATE OR REPLACE FUNCTION fairhook.ensure_partitions(first_day date, last_day date)
 RETURNS integer
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET lock_timeout TO '5s'
 SET "TimeZone" TO 'UTC'
AS $function$
DECLARE
    parent text;
    child  text;
    day    date;
    made   integer := 0;
BEGIN
    IF last_day - first_day > 400 THEN
        RAISE EXCEPTION 'ensure_partitions: % days at once is more than 400', last_day - first_day;
    END IF;
    FOR day IN SELECT d::date FROM generate_series(first_day::timestamp, last_day::timestamp, '1 day') d LOOP
        FOREACH parent IN ARRAY ARRAY['events', 'attempts'] LOOP
            child := parent || '_' || to_char(day, 'YYYYMMDD');
            CONTINUE WHEN to_regclass('fairhook.' || child) IS NOT NULL;
            PERFORM pg_advisory_xact_lock(hashtextextended('fairhook.ensure_partitions', 0));
            -- Asks the table and not to_regclass, whose cache would still say no
            -- after another session made it while we waited.
            CONTINUE WHEN EXISTS (SELECT FROM pg_class WHERE relnamespace = 'fairhook'::regnamespace AND relname = child);
            EXECUTE format('CREATE TABLE fairhook.%I (LIKE fairhook.%I INCLUDING ALL)', child, parent);
            EXECUTE format('ALTER TABLE fairhook.%I ATTACH PARTITION fairhook.%I FOR VALUES FROM (%L) TO (%L)',
                parent, child, fairhook.uuid_floor(day::timestamptz), fairhook.uuid_floor((day + 1)::timestamptz));
            made := made + 1;
        END LOOP;
    END LOOP;
    RETURN made;
END $function$;
REVOKE ALL ON FUNCTION fairhook.ensure_partitions(date,date) FROM PUBLIC;

CREATE OR REPLACE FUNCTION fairhook.event_types_notify()
 RETURNS trigger
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog'
AS $function$
BEGIN
    PERFORM pg_notify('fairhook.catalog', 'type ' || CASE TG_OP WHEN 'DELETE' THEN OLD.name ELSE NEW.name END);
    RETURN NULL;
END $function$;

CREATE OR REPLACE FUNCTION fairhook.events_reserved()
 RETURNS trigger
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    IF current_setting('fairhook.announcing', true) IS DISTINCT FROM 'on' THEN
        RAISE EXCEPTION USING ERRCODE = 'FH403',
            MESSAGE = 'The tenant fairhook.operator is for Fairhook''s own events: nobody submits for it.';
    END IF;
    RETURN NEW;
END $function$;
REVOKE ALL ON FUNCTION fairhook.events_reserved() FROM PUBLIC;

CREATE OR REPLACE FUNCTION fairhook.expired_partitions(retention interval)
 RETURNS SETOF date
 LANGUAGE sql
 STABLE STRICT
 SET search_path TO 'pg_catalog'
 SET "TimeZone" TO 'UTC'
AS $function$
    SELECT DISTINCT day FROM (
        SELECT CASE WHEN c.relname ~ '^(events|attempts)_[0-9]{8}$' THEN to_date(right(c.relname, 8), 'YYYYMMDD') END AS day
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent IN ('fairhook.events'::regclass, 'fairhook.attempts'::regclass)
    ) AS partition
    WHERE day + 1 <= (now() - retention)::timestamp
    ORDER BY day
$function$;

CREATE OR REPLACE FUNCTION fairhook.grant_submit(role name, tenant text)
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    IF tenant IS NULL OR fairhook.text_fault(tenant, 256) IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('The tenant %s.', coalesce(fairhook.text_fault(tenant, 256), 'is required')),
            HINT = 'fairhook.grant_submit_all(role) is for all tenants.';
    END IF;
    PERFORM fairhook.set_submit_privileges(grant_submit.role, true);
    INSERT INTO fairhook.submit_grants (role, tenant) VALUES (grant_submit.role, grant_submit.tenant) ON CONFLICT DO NOTHING;
END $function$;
REVOKE ALL ON FUNCTION fairhook.grant_submit(name,text) FROM PUBLIC;

CREATE OR REPLACE FUNCTION fairhook.grant_submit_all(role name)
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    PERFORM fairhook.set_submit_privileges(grant_submit_all.role, true);
    INSERT INTO fairhook.submit_grants (role, tenant) VALUES (grant_submit_all.role, NULL) ON CONFLICT DO NOTHING;
END $function$;
REVOKE ALL ON FUNCTION fairhook.grant_submit_all(name) FROM PUBLIC;

CREATE OR REPLACE FUNCTION fairhook.lane_gates_changed()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    IF TG_OP <> 'DELETE' THEN
        -- A lease of the probe changes neither the gate nor its time, and is nobody's
        -- news: those who ask for it too learn that it is taken.
        IF TG_OP = 'UPDATE' AND NEW.closed_at = OLD.closed_at AND NEW.until = OLD.until AND NEW.cause = OLD.cause THEN
            IF NEW.probe_by IS NOT NULL AND NEW.probe_until IS DISTINCT FROM OLD.probe_until THEN
                INSERT INTO fairhook.lane_events (webhook_id, event, cause, until) VALUES (NEW.webhook_id, 'probing', NEW.cause, NEW.probe_until);
            END IF;
            RETURN NULL;
        END IF;
        INSERT INTO fairhook.lane_events (webhook_id, event, cause, until) VALUES (NEW.webhook_id, 'closed', NEW.cause, NEW.until);
        PERFORM pg_notify('fairhook.lanes', NEW.webhook_id || ' ' || (extract(epoch FROM NEW.until) * 1000000)::bigint);
    ELSE
        -- The breaker's gate opens with the success that deletes its row, any other when
        -- its time is over.
        INSERT INTO fairhook.lane_events (webhook_id, at, event, cause)
        VALUES (OLD.webhook_id, CASE OLD.cause WHEN 'breaker' THEN clock_timestamp() ELSE least(OLD.until, clock_timestamp()) END,
                'opened', OLD.cause);
        PERFORM pg_notify('fairhook.lanes', OLD.webhook_id::text);
    END IF;
    RETURN NULL;
END $function$;
REVOKE ALL ON FUNCTION fairhook.lane_gates_changed() FROM PUBLIC;

CREATE OR REPLACE FUNCTION fairhook.lane_owners_changed()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    PERFORM pg_notify('fairhook.lanes', OLD.webhook_id::text);
    RETURN NULL;
END $function$;
REVOKE ALL ON FUNCTION fairhook.lane_owners_changed() FROM PUBLIC;

CREATE OR REPLACE FUNCTION fairhook.metadata_faults(metadata jsonb)
 RETURNS jsonb
 LANGUAGE sql
 IMMUTABLE STRICT
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
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
$function$;
REVOKE ALL ON FUNCTION fairhook.metadata_faults(jsonb) FROM PUBLIC;

CREATE OR REPLACE FUNCTION fairhook.new_id(moment timestamp with time zone)
 RETURNS uuid
 LANGUAGE sql
 STRICT
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
    SELECT (lpad(to_hex(t.micros / 1000), 12, '0')
         || '7' || lpad(to_hex(t.micros % 1000 * 4096 / 1000), 3, '0')
         || right(replace(gen_random_uuid()::text, '-', ''), 16))::uuid
    FROM (SELECT (extract(epoch FROM moment) * 1000000)::bigint AS micros) AS t
$function$;
REVOKE ALL ON FUNCTION fairhook.new_id(timestamp with time zone) FROM PUBLIC;

CREATE OR REPLACE FUNCTION fairhook.revoke_submit(role name, tenant text)
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    DELETE FROM fairhook.submit_grants AS g WHERE g.role = revoke_submit.role AND g.tenant = revoke_submit.tenant;
    IF NOT EXISTS (SELECT FROM fairhook.submit_grants AS g WHERE g.role = revoke_submit.role) THEN
        PERFORM fairhook.set_submit_privileges(revoke_submit.role, false);
    END IF;
END $function$;
REVOKE ALL ON FUNCTION fairhook.revoke_submit(name,text) FROM PUBLIC;

CREATE OR REPLACE FUNCTION fairhook.revoke_submit_all(role name)
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    DELETE FROM fairhook.submit_grants AS g WHERE g.role = revoke_submit_all.role;
    PERFORM fairhook.set_submit_privileges(revoke_submit_all.role, false);
END $function$;
REVOKE ALL ON FUNCTION fairhook.revoke_submit_all(name) FROM PUBLIC;

CREATE OR REPLACE FUNCTION fairhook.river_job_state_in_bitmask(bitmask bit, state fairhook.river_job_state)
 RETURNS boolean
 LANGUAGE sql
 IMMUTABLE
AS $function$
    SELECT CASE state
        WHEN 'available' THEN get_bit(bitmask, 7)
        WHEN 'cancelled' THEN get_bit(bitmask, 6)
        WHEN 'completed' THEN get_bit(bitmask, 5)
        WHEN 'discarded' THEN get_bit(bitmask, 4)
        WHEN 'pending'   THEN get_bit(bitmask, 3)
        WHEN 'retryable' THEN get_bit(bitmask, 2)
        WHEN 'running'   THEN get_bit(bitmask, 1)
        WHEN 'scheduled' THEN get_bit(bitmask, 0)
        ELSE 0
    END = 1;
$function$;

CREATE OR REPLACE FUNCTION fairhook.set_submit_privileges(role name, allowed boolean)
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
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
END $function$;
REVOKE ALL ON FUNCTION fairhook.set_submit_privileges(name,boolean) FROM PUBLIC;

CREATE OR REPLACE FUNCTION fairhook.submit_event(tenant text, type text, payload bytea, metadata jsonb DEFAULT NULL::jsonb, occurred_at timestamp with time zone DEFAULT NULL::timestamp with time zone, webhook_id uuid DEFAULT NULL::uuid, content_type text DEFAULT NULL::text, unvalidated boolean DEFAULT false, ordering_key text DEFAULT NULL::text)
 RETURNS uuid
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
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
END $function$;
REVOKE ALL ON FUNCTION fairhook.submit_event(text,text,bytea,jsonb,timestamp with time zone,uuid,text,boolean,text) FROM PUBLIC;

CREATE OR REPLACE FUNCTION fairhook.submit_event(tenant text, type text, payload json, metadata jsonb DEFAULT NULL::jsonb, occurred_at timestamp with time zone DEFAULT NULL::timestamp with time zone, webhook_id uuid DEFAULT NULL::uuid, content_type text DEFAULT NULL::text, unvalidated boolean DEFAULT false, ordering_key text DEFAULT NULL::text)
 RETURNS uuid
 LANGUAGE sql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
    SELECT fairhook.submit_event(tenant, type, convert_to(payload::text, 'UTF8'), metadata, occurred_at, webhook_id, content_type, unvalidated, ordering_key)
$function$;
REVOKE ALL ON FUNCTION fairhook.submit_event(text,text,json,jsonb,timestamp with time zone,uuid,text,boolean,text) FROM PUBLIC;

CREATE OR REPLACE FUNCTION fairhook.submit_event(tenant text, type text, payload jsonb, metadata jsonb DEFAULT NULL::jsonb, occurred_at timestamp with time zone DEFAULT NULL::timestamp with time zone, webhook_id uuid DEFAULT NULL::uuid, content_type text DEFAULT NULL::text, unvalidated boolean DEFAULT false, ordering_key text DEFAULT NULL::text)
 RETURNS uuid
 LANGUAGE sql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
    SELECT fairhook.submit_event(tenant, type, convert_to(payload::text, 'UTF8'), metadata, occurred_at, webhook_id, content_type, unvalidated, ordering_key)
$function$;
REVOKE ALL ON FUNCTION fairhook.submit_event(text,text,jsonb,jsonb,timestamp with time zone,uuid,text,boolean,text) FROM PUBLIC;

CREATE OR REPLACE FUNCTION fairhook.submit_event(tenant text, type text, payload text, metadata jsonb DEFAULT NULL::jsonb, occurred_at timestamp with time zone DEFAULT NULL::timestamp with time zone, webhook_id uuid DEFAULT NULL::uuid, content_type text DEFAULT NULL::text, unvalidated boolean DEFAULT false, ordering_key text DEFAULT NULL::text)
 RETURNS uuid
 LANGUAGE sql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
    SELECT fairhook.submit_event(tenant, type, convert_to(payload, 'UTF8'), metadata, occurred_at, webhook_id, content_type, unvalidated, ordering_key)
$function$;
REVOKE ALL ON FUNCTION fairhook.submit_event(text,text,text,jsonb,timestamp with time zone,uuid,text,boolean,text) FROM PUBLIC;

CREATE OR REPLACE FUNCTION fairhook.text_fault(value text, max_bytes integer)
 RETURNS text
 LANGUAGE sql
 IMMUTABLE STRICT
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
    SELECT CASE
        WHEN octet_length(value) = 0 THEN 'must not be empty'
        WHEN octet_length(value) > max_bytes THEN format('must be at most %s bytes long', max_bytes)
        WHEN value COLLATE "C" ~ ('[' || chr(1) || '-' || chr(31) || chr(127) || ']') THEN 'must not contain control characters'
    END
$function$;
REVOKE ALL ON FUNCTION fairhook.text_fault(text,integer) FROM PUBLIC;

CREATE OR REPLACE FUNCTION fairhook.uuid_floor(moment timestamp with time zone)
 RETURNS uuid
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE STRICT
 SET search_path TO 'pg_catalog'
AS $function$
    SELECT (lpad(to_hex(floor(extract(epoch FROM moment) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$function$;

CREATE OR REPLACE FUNCTION fairhook.webhook_credentials_changed()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
DECLARE
    changed uuid := CASE TG_OP WHEN 'DELETE' THEN OLD.webhook_id ELSE NEW.webhook_id END;
BEGIN
    PERFORM pg_notify('fairhook.catalog', w.id || ' ' || w.tenant) FROM fairhook.webhooks w WHERE w.id = changed;
    IF TG_OP = 'DELETE' OR NEW.updated_at >= now() AND NEW.updated_at IS DISTINCT FROM OLD.updated_at THEN
        DELETE FROM fairhook.lane_gates WHERE webhook_id = changed;
    END IF;
    RETURN NULL;
END $function$;
REVOKE ALL ON FUNCTION fairhook.webhook_credentials_changed() FROM PUBLIC;

CREATE OR REPLACE FUNCTION fairhook.webhook_failures_began()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    PERFORM pg_notify('fairhook.lanes', NEW.webhook_id::text);
    RETURN NULL;
END $function$;
REVOKE ALL ON FUNCTION fairhook.webhook_failures_began() FROM PUBLIC;

CREATE OR REPLACE FUNCTION fairhook.webhook_secrets_notify()
 RETURNS trigger
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog'
AS $function$
BEGIN
    PERFORM pg_notify('fairhook.catalog', w.id || ' ' || w.tenant)
    FROM fairhook.webhooks w
    WHERE w.id = CASE TG_OP WHEN 'DELETE' THEN OLD.webhook_id ELSE NEW.webhook_id END;
    RETURN NULL;
END $function$;

CREATE OR REPLACE FUNCTION fairhook.webhooks_deleted()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    INSERT INTO fairhook.deleted_webhooks (id, tenant) VALUES (OLD.id, OLD.tenant) ON CONFLICT DO NOTHING;
    DELETE FROM fairhook.lane_gates WHERE webhook_id = OLD.id;
    DELETE FROM fairhook.lane_owners WHERE webhook_id = OLD.id;
    RETURN NULL;
END $function$;
REVOKE ALL ON FUNCTION fairhook.webhooks_deleted() FROM PUBLIC;

CREATE OR REPLACE FUNCTION fairhook.webhooks_gated()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    IF OLD.status <> NEW.status AND OLD.status <> 'active' THEN
        INSERT INTO fairhook.lane_events (webhook_id, event, cause) VALUES (OLD.id, 'opened', OLD.status);
    END IF;
    IF OLD.status <> NEW.status AND NEW.status <> 'active' THEN
        INSERT INTO fairhook.lane_events (webhook_id, event, cause, detail) VALUES (NEW.id, 'closed', NEW.status, NEW.disabled_reason);
    END IF;
    IF OLD.url <> NEW.url OR OLD.status <> NEW.status AND NEW.status = 'active' THEN
        DELETE FROM fairhook.lane_gates WHERE webhook_id = NEW.id;
    END IF;
    RETURN NULL;
END $function$;
REVOKE ALL ON FUNCTION fairhook.webhooks_gated() FROM PUBLIC;

CREATE OR REPLACE FUNCTION fairhook.webhooks_notify()
 RETURNS trigger
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog'
AS $function$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        PERFORM pg_notify('fairhook.catalog', OLD.id || ' ' || OLD.tenant);
    END IF;
    IF TG_OP <> 'DELETE' AND (TG_OP = 'INSERT' OR NEW.tenant <> OLD.tenant) THEN
        PERFORM pg_notify('fairhook.catalog', NEW.id || ' ' || NEW.tenant);
    END IF;
    RETURN NULL;
END $function$;

CREATE OR REPLACE FUNCTION fairhook.webhooks_reordered()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    INSERT INTO fairhook.lane_owners (webhook_id, owner, until, ordering) VALUES (NEW.id, '', now(), 'changing')
    ON CONFLICT (webhook_id) DO UPDATE SET ordering = 'changing';
    RETURN NULL;
END $function$;
REVOKE ALL ON FUNCTION fairhook.webhooks_reordered() FROM PUBLIC;

CREATE OR REPLACE FUNCTION fairhook.webhooks_seen_to()
 RETURNS trigger
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM fairhook.webhook_failures WHERE webhook_id = OLD.id;
        DELETE FROM fairhook.exhausted_deliveries WHERE webhook_id = OLD.id;
        DELETE FROM fairhook.growing_backlogs WHERE webhook_id = OLD.id;
    ELSIF OLD.url <> NEW.url OR NEW.status = 'active' THEN
        UPDATE fairhook.webhook_failures SET since = NULL, cleared_at = clock_timestamp(), announced = -1
        WHERE webhook_id = NEW.id;
    END IF;
    RETURN NULL;
END $function$;
REVOKE ALL ON FUNCTION fairhook.webhooks_seen_to() FROM PUBLIC;

CREATE SEQUENCE fairhook.river_job_id_seq AS bigint;

CREATE SEQUENCE fairhook.river_notification_id_seq AS bigint;

CREATE TABLE fairhook.api_key_secrets (
    id uuid NOT NULL,
    key_id uuid NOT NULL,
    sealed bytea NOT NULL,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    expires_at timestamp with time zone,
    CONSTRAINT api_key_secrets_key_id_fkey FOREIGN KEY (key_id) REFERENCES fairhook.api_keys(id) ON DELETE CASCADE,
    CONSTRAINT api_key_secrets_pkey PRIMARY KEY (id)
);
CREATE INDEX api_key_secrets_key_idx ON fairhook.api_key_secrets USING btree (key_id, id);
CREATE TRIGGER api_key_secrets_notify AFTER INSERT OR DELETE OR UPDATE ON fairhook.api_key_secrets FOR EACH ROW EXECUTE FUNCTION fairhook.api_key_secrets_notify();

CREATE TABLE fairhook.api_keys (
    id uuid NOT NULL,
    hash bytea NOT NULL,
    hint text NOT NULL,
    description text NOT NULL,
    tenant text,
    scopes text[] NOT NULL,
    allowed_cidrs text[] NOT NULL,
    require_signature boolean NOT NULL,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    expires_at timestamp with time zone,
    revoked_at timestamp with time zone,
    last_used_at timestamp with time zone,
    CONSTRAINT api_keys_hash_key UNIQUE (hash),
    CONSTRAINT api_keys_pkey PRIMARY KEY (id)
);
CREATE INDEX api_keys_tenant_idx ON fairhook.api_keys USING btree (tenant, id);
CREATE TRIGGER api_keys_notify AFTER INSERT OR DELETE OR UPDATE ON fairhook.api_keys FOR EACH ROW EXECUTE FUNCTION fairhook.api_keys_notify();

CREATE TABLE fairhook.attempts (
    event_id uuid NOT NULL,
    id uuid NOT NULL,
    webhook_id uuid NOT NULL,
    tenant text NOT NULL,
    started_at timestamp with time zone NOT NULL,
    next_attempt_at timestamp with time zone,
    queue_wait_us bigint,
    dns_us bigint,
    connect_us bigint,
    tls_us bigint,
    first_byte_us bigint,
    total_us bigint,
    number integer NOT NULL,
    status_code smallint,
    reason text NOT NULL,
    status text NOT NULL,
    instance text NOT NULL,
    response text,
    detail text,
    uses_step boolean NOT NULL DEFAULT true,
    auth_us bigint,
    CONSTRAINT attempts_pkey PRIMARY KEY (event_id, id)
) PARTITION BY RANGE (event_id);
CREATE INDEX attempts_ended_event_idx ON ONLY fairhook.attempts USING btree (status, event_id) WHERE (status = ANY (ARRAY['exhausted'::text, 'cancelled'::text, 'dropped'::text]));
CREATE INDEX attempts_ended_event_tenant_idx ON ONLY fairhook.attempts USING btree (tenant, status, event_id) WHERE (status = ANY (ARRAY['exhausted'::text, 'cancelled'::text, 'dropped'::text]));
CREATE INDEX attempts_ended_event_webhook_idx ON ONLY fairhook.attempts USING btree (webhook_id, status, event_id) WHERE (status = ANY (ARRAY['exhausted'::text, 'cancelled'::text, 'dropped'::text]));
CREATE INDEX attempts_ended_idx ON ONLY fairhook.attempts USING btree (status, id, reason) WHERE (status = ANY (ARRAY['exhausted'::text, 'cancelled'::text, 'dropped'::text]));
CREATE INDEX attempts_ended_tenant_idx ON ONLY fairhook.attempts USING btree (tenant, status, id, reason) WHERE (status = ANY (ARRAY['exhausted'::text, 'cancelled'::text, 'dropped'::text]));
CREATE INDEX attempts_ended_webhook_idx ON ONLY fairhook.attempts USING btree (webhook_id, status, id, reason) WHERE (status = ANY (ARRAY['exhausted'::text, 'cancelled'::text, 'dropped'::text]));
CREATE INDEX attempts_webhook_idx ON ONLY fairhook.attempts USING btree (webhook_id, event_id);

CREATE TABLE fairhook.deleted_webhooks (
    id uuid NOT NULL,
    tenant text NOT NULL,
    deleted_at timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT deleted_webhooks_pkey PRIMARY KEY (id)
);
CREATE INDEX deleted_webhooks_at_idx ON fairhook.deleted_webhooks USING btree (deleted_at);

CREATE TABLE fairhook.dispatch_clock (
    singleton boolean NOT NULL DEFAULT true,
    worked interval NOT NULL DEFAULT '00:00:00'::interval,
    ticked_at timestamp with time zone NOT NULL,
    CONSTRAINT dispatch_clock_pkey PRIMARY KEY (singleton),
    CONSTRAINT dispatch_clock_singleton_check CHECK (singleton)
);

CREATE TABLE fairhook.event_types (
    name text NOT NULL,
    description text NOT NULL,
    schema text,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    updated_at timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT event_types_pkey PRIMARY KEY (name)
);
CREATE TRIGGER event_types_notify AFTER INSERT OR DELETE OR UPDATE ON fairhook.event_types FOR EACH ROW EXECUTE FUNCTION fairhook.event_types_notify();

CREATE TABLE fairhook.events (
    id uuid NOT NULL,
    tenant text NOT NULL,
    type text NOT NULL,
    payload bytea NOT NULL,
    content_type text,
    occurred_at timestamp with time zone,
    metadata jsonb,
    webhook_ids uuid[] NOT NULL,
    ordering_key text,
    CONSTRAINT events_pkey PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE INDEX events_tenant_idx ON ONLY fairhook.events USING btree (tenant, id);
CREATE TRIGGER events_reserved BEFORE INSERT ON fairhook.events FOR EACH ROW WHEN ((new.tenant = 'fairhook.operator'::text)) EXECUTE FUNCTION fairhook.events_reserved();

CREATE TABLE fairhook.exhausted_deliveries (
    webhook_id uuid NOT NULL,
    deliveries bigint NOT NULL,
    event_ids uuid[] NOT NULL,
    first_at timestamp with time zone,
    last_at timestamp with time zone,
    announce_at timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT exhausted_deliveries_pkey PRIMARY KEY (webhook_id)
)
WITH (fillfactor=50);
CREATE INDEX exhausted_deliveries_announce_idx ON fairhook.exhausted_deliveries USING btree (announce_at);

CREATE TABLE fairhook.growing_backlogs (
    webhook_id uuid NOT NULL,
    announced_at timestamp with time zone NOT NULL DEFAULT now(),
    checked_at timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT growing_backlogs_pkey PRIMARY KEY (webhook_id)
);
CREATE INDEX growing_backlogs_checked_idx ON fairhook.growing_backlogs USING btree (checked_at);

CREATE TABLE fairhook.idempotency_keys (
    tenant text NOT NULL,
    key text NOT NULL,
    event_id uuid NOT NULL,
    fingerprint bytea NOT NULL,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (tenant, key)
);
CREATE INDEX idempotency_keys_created_idx ON fairhook.idempotency_keys USING btree (created_at);

CREATE TABLE fairhook.instances (
    id text NOT NULL,
    role text NOT NULL,
    version text NOT NULL,
    host text NOT NULL,
    started_at timestamp with time zone NOT NULL DEFAULT now(),
    heartbeat_at timestamp with time zone NOT NULL DEFAULT now(),
    capacity integer NOT NULL DEFAULT 0,
    in_flight integer NOT NULL DEFAULT 0,
    draining boolean NOT NULL DEFAULT false,
    reads_sealed_headers boolean NOT NULL DEFAULT false,
    CONSTRAINT instances_pkey PRIMARY KEY (id),
    CONSTRAINT instances_role_check CHECK ((role = ANY (ARRAY['ingest'::text, 'dispatcher'::text])))
);

CREATE TABLE fairhook.lane_events (
    webhook_id uuid NOT NULL,
    at timestamp with time zone NOT NULL DEFAULT clock_timestamp(),
    event text NOT NULL,
    cause text NOT NULL,
    until timestamp with time zone,
    detail text
);
CREATE INDEX lane_events_at_idx ON fairhook.lane_events USING btree (at);
CREATE INDEX lane_events_webhook_idx ON fairhook.lane_events USING btree (webhook_id, at);

CREATE TABLE fairhook.lane_gates (
    webhook_id uuid NOT NULL,
    cause text NOT NULL,
    until timestamp with time zone NOT NULL,
    in_a_row integer NOT NULL DEFAULT 1,
    closed_at timestamp with time zone NOT NULL,
    attempt_at timestamp with time zone NOT NULL,
    probe_by text,
    probe_until timestamp with time zone,
    CONSTRAINT lane_gates_cause_check CHECK ((cause = ANY (ARRAY['receiver'::text, 'breaker'::text, 'proxy'::text, 'auth'::text]))),
    CONSTRAINT lane_gates_pkey PRIMARY KEY (webhook_id)
);
CREATE TRIGGER lane_gates_changed AFTER INSERT OR DELETE OR UPDATE ON fairhook.lane_gates FOR EACH ROW EXECUTE FUNCTION fairhook.lane_gates_changed();

CREATE UNLOGGED TABLE fairhook.lane_health (
    webhook_id uuid NOT NULL,
    delivered bigint NOT NULL,
    failed bigint NOT NULL,
    updated_at timestamp with time zone NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT lane_health_pkey PRIMARY KEY (webhook_id)
)
WITH (fillfactor=50);
CREATE INDEX lane_health_updated_idx ON fairhook.lane_health USING btree (updated_at);

CREATE TABLE fairhook.lane_owners (
    webhook_id uuid NOT NULL,
    owner text NOT NULL,
    epoch bigint NOT NULL DEFAULT 1,
    until timestamp with time zone NOT NULL,
    ordering text NOT NULL DEFAULT 'none'::text,
    CONSTRAINT lane_owners_ordering_check CHECK ((ordering = ANY (ARRAY['none'::text, 'strict'::text, 'key'::text, 'changing'::text]))),
    CONSTRAINT lane_owners_pkey PRIMARY KEY (webhook_id)
);
CREATE INDEX lane_owners_owner_idx ON fairhook.lane_owners USING btree (owner);
CREATE TRIGGER lane_owners_changed AFTER DELETE ON fairhook.lane_owners FOR EACH ROW EXECUTE FUNCTION fairhook.lane_owners_changed();

CREATE UNLOGGED TABLE fairhook.rate_buckets (
    name text NOT NULL,
    tokens double precision NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    CONSTRAINT rate_buckets_pkey PRIMARY KEY (name)
)
WITH (fillfactor=50);

CREATE TABLE fairhook.river_job (
    id bigint NOT NULL DEFAULT nextval('fairhook.river_job_id_seq'::regclass),
    state fairhook.river_job_state NOT NULL DEFAULT 'available'::fairhook.river_job_state,
    attempt smallint NOT NULL DEFAULT 0,
    max_attempts smallint NOT NULL DEFAULT 25,
    attempted_at timestamp with time zone,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    finalized_at timestamp with time zone,
    scheduled_at timestamp with time zone NOT NULL DEFAULT now(),
    priority smallint NOT NULL DEFAULT 1,
    args jsonb NOT NULL,
    attempted_by text[],
    errors jsonb[],
    kind text NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}'::jsonb,
    queue text NOT NULL DEFAULT 'default'::text,
    tags character varying(255)[] NOT NULL DEFAULT '{}'::character varying[],
    unique_key bytea,
    unique_states bit(8),
    CONSTRAINT finalized_or_finalized_at_null CHECK ((((finalized_at IS NULL) AND (state <> ALL (ARRAY['cancelled'::fairhook.river_job_state, 'completed'::fairhook.river_job_state, 'discarded'::fairhook.river_job_state]))) OR ((finalized_at IS NOT NULL) AND (state = ANY (ARRAY['cancelled'::fairhook.river_job_state, 'completed'::fairhook.river_job_state, 'discarded'::fairhook.river_job_state]))))),
    CONSTRAINT kind_length CHECK (((char_length(kind) > 0) AND (char_length(kind) < 128))),
    CONSTRAINT max_attempts_is_positive CHECK ((max_attempts > 0)),
    CONSTRAINT priority_in_range CHECK (((priority >= 1) AND (priority <= 4))),
    CONSTRAINT queue_length CHECK (((char_length(queue) > 0) AND (char_length(queue) < 128))),
    CONSTRAINT river_job_pkey PRIMARY KEY (id)
)
WITH (autovacuum_vacuum_scale_factor=0, autovacuum_vacuum_threshold=20000, autovacuum_vacuum_cost_delay=0, autovacuum_analyze_scale_factor=0, autovacuum_analyze_threshold=50000);
CREATE INDEX fairhook_river_job_due_idx ON fairhook.river_job USING btree (scheduled_at) WHERE (state = ANY (ARRAY['retryable'::fairhook.river_job_state, 'scheduled'::fairhook.river_job_state]));
CREATE INDEX river_job_key_idx ON fairhook.river_job USING btree (queue, ((args ->> 'ordering_key'::text)) COLLATE "C", id) WHERE ((priority = 3) AND (finalized_at IS NULL));
CREATE INDEX river_job_prioritized_fetching_index ON fairhook.river_job USING btree (state, queue, priority, scheduled_at, id);
CREATE INDEX river_job_state_and_finalized_at_index ON fairhook.river_job USING btree (state, finalized_at) WHERE (finalized_at IS NOT NULL);
CREATE INDEX river_job_strict_idx ON fairhook.river_job USING btree (queue, ((id + 0))) WHERE ((priority = 4) AND (finalized_at IS NULL));
CREATE UNIQUE INDEX river_job_unique_idx ON fairhook.river_job USING btree (unique_key) WHERE ((unique_key IS NOT NULL) AND (unique_states IS NOT NULL) AND fairhook.river_job_state_in_bitmask(unique_states, state));

CREATE UNLOGGED TABLE fairhook.river_leader (
    elected_at timestamp with time zone NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    leader_id text NOT NULL,
    name text NOT NULL DEFAULT 'default'::text,
    CONSTRAINT leader_id_length CHECK (((char_length(leader_id) > 0) AND (char_length(leader_id) < 128))),
    CONSTRAINT name_length CHECK ((name = 'default'::text)),
    CONSTRAINT river_leader_pkey PRIMARY KEY (name)
);

CREATE TABLE fairhook.river_migration (
    line text NOT NULL,
    version bigint NOT NULL,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT line_length CHECK (((char_length(line) > 0) AND (char_length(line) < 128))),
    CONSTRAINT river_migration_pkey1 PRIMARY KEY (line, version),
    CONSTRAINT version_gte_1 CHECK ((version >= 1))
);

CREATE TABLE fairhook.river_notification (
    id bigint NOT NULL DEFAULT nextval('fairhook.river_notification_id_seq'::regclass),
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    payload text NOT NULL,
    topic text NOT NULL,
    CONSTRAINT river_notification_pkey PRIMARY KEY (id),
    CONSTRAINT topic_length CHECK (((length(topic) > 0) AND (length(topic) < 128)))
);
CREATE INDEX river_notification_created_at_idx ON fairhook.river_notification USING btree (created_at);
CREATE INDEX river_notification_topic_id_idx ON fairhook.river_notification USING btree (topic, id);

CREATE TABLE fairhook.river_queue (
    name text NOT NULL,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    metadata jsonb NOT NULL DEFAULT '{}'::jsonb,
    paused_at timestamp with time zone,
    updated_at timestamp with time zone NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT river_queue_pkey PRIMARY KEY (name)
);

CREATE TABLE fairhook.schema_version (
    version integer NOT NULL
);

CREATE TABLE fairhook.signed_requests (
    key_id uuid NOT NULL,
    id text NOT NULL,
    fingerprint bytea NOT NULL,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT signed_requests_pkey PRIMARY KEY (key_id, id)
);
CREATE INDEX signed_requests_created_idx ON fairhook.signed_requests USING btree (created_at);

CREATE TABLE fairhook.submit_grants (
    role name NOT NULL,
    tenant text,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT submit_grants_no_operator CHECK ((tenant <> 'fairhook.operator'::text))
);
CREATE UNIQUE INDEX submit_grants_all_idx ON fairhook.submit_grants USING btree (role) WHERE (tenant IS NULL);
CREATE UNIQUE INDEX submit_grants_tenant_idx ON fairhook.submit_grants USING btree (tenant, role);

CREATE TABLE fairhook.submit_settings (
    singleton boolean NOT NULL DEFAULT true,
    max_payload_bytes integer NOT NULL DEFAULT 1048576,
    strict_event_types boolean NOT NULL DEFAULT false,
    CONSTRAINT submit_settings_max_payload_bytes_check CHECK ((max_payload_bytes > 0)),
    CONSTRAINT submit_settings_pkey PRIMARY KEY (singleton),
    CONSTRAINT submit_settings_singleton_check CHECK (singleton)
);

CREATE TABLE fairhook.webhook_credentials (
    webhook_id uuid NOT NULL,
    sealed bytea NOT NULL,
    certificate_not_after timestamp with time zone,
    updated_at timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT webhook_credentials_pkey PRIMARY KEY (webhook_id),
    CONSTRAINT webhook_credentials_webhook_id_fkey FOREIGN KEY (webhook_id) REFERENCES fairhook.webhooks(id) ON DELETE CASCADE
);
CREATE INDEX webhook_credentials_certificate_idx ON fairhook.webhook_credentials USING btree (certificate_not_after) WHERE (certificate_not_after IS NOT NULL);
CREATE TRIGGER webhook_credentials_changed AFTER INSERT OR DELETE OR UPDATE ON fairhook.webhook_credentials FOR EACH ROW EXECUTE FUNCTION fairhook.webhook_credentials_changed();

CREATE TABLE fairhook.webhook_failures (
    webhook_id uuid NOT NULL,
    since timestamp with time zone,
    cleared_at timestamp with time zone,
    failed_at timestamp with time zone NOT NULL,
    failed_worked interval NOT NULL,
    failing_for interval NOT NULL,
    attempts bigint NOT NULL,
    reason text NOT NULL,
    status_code smallint,
    announced smallint NOT NULL DEFAULT '-1'::integer,
    told boolean NOT NULL DEFAULT false,
    CONSTRAINT webhook_failures_pkey PRIMARY KEY (webhook_id)
)
WITH (fillfactor=50);
CREATE TRIGGER webhook_failures_began AFTER INSERT ON fairhook.webhook_failures FOR EACH ROW EXECUTE FUNCTION fairhook.webhook_failures_began();

CREATE TABLE fairhook.webhook_secrets (
    id uuid NOT NULL,
    webhook_id uuid NOT NULL,
    sealed bytea NOT NULL,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    expires_at timestamp with time zone,
    kind text NOT NULL DEFAULT 'symmetric'::text,
    public_key bytea,
    CONSTRAINT webhook_secrets_pkey PRIMARY KEY (id),
    CONSTRAINT webhook_secrets_webhook_id_fkey FOREIGN KEY (webhook_id) REFERENCES fairhook.webhooks(id) ON DELETE CASCADE
);
CREATE INDEX webhook_secrets_webhook_idx ON fairhook.webhook_secrets USING btree (webhook_id, id);
CREATE TRIGGER webhook_secrets_notify AFTER INSERT OR DELETE OR UPDATE ON fairhook.webhook_secrets FOR EACH ROW EXECUTE FUNCTION fairhook.webhook_secrets_notify();

CREATE TABLE fairhook.webhook_tests (
    id uuid NOT NULL,
    webhook_id uuid NOT NULL,
    requested_at timestamp with time zone NOT NULL DEFAULT now(),
    claimed_at timestamp with time zone,
    instance text,
    finished_at timestamp with time zone,
    reason text,
    status_code smallint,
    auth_us bigint,
    dns_us bigint,
    connect_us bigint,
    tls_us bigint,
    first_byte_us bigint,
    total_us bigint,
    response text,
    detail text,
    CONSTRAINT webhook_tests_pkey PRIMARY KEY (id)
);
CREATE INDEX webhook_tests_waiting_idx ON fairhook.webhook_tests USING btree (requested_at) WHERE (claimed_at IS NULL);
CREATE INDEX webhook_tests_webhook_idx ON fairhook.webhook_tests USING btree (webhook_id, requested_at);

CREATE TABLE fairhook.webhooks (
    id uuid NOT NULL,
    tenant text NOT NULL,
    url text NOT NULL,
    description text NOT NULL,
    event_types text[] NOT NULL,
    status text NOT NULL,
    disabled_reason text,
    headers jsonb NOT NULL,
    timeout_seconds integer NOT NULL,
    max_in_flight integer NOT NULL,
    retry_schedule_seconds integer[] NOT NULL,
    max_age_seconds integer NOT NULL,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    updated_at timestamp with time zone NOT NULL DEFAULT now(),
    accept_per_second double precision,
    max_backlog integer NOT NULL DEFAULT 1000000,
    allowed_cidrs text[] NOT NULL DEFAULT '{}'::text[],
    rate_per_second double precision,
    burst integer,
    weight smallint NOT NULL DEFAULT 1,
    signatures text[] NOT NULL DEFAULT '{standard}'::text[],
    signature_template jsonb,
    auto_disable_after_seconds integer,
    ordering text NOT NULL DEFAULT 'none'::text,
    ordering_skip_after integer,
    CONSTRAINT webhooks_ordering_check CHECK ((ordering = ANY (ARRAY['none'::text, 'strict'::text, 'key'::text]))),
    CONSTRAINT webhooks_pkey PRIMARY KEY (id),
    CONSTRAINT webhooks_status_check CHECK ((status = ANY (ARRAY['active'::text, 'paused'::text, 'disabled'::text])))
);
CREATE INDEX webhooks_gated_idx ON fairhook.webhooks USING btree (id) WHERE (status <> 'active'::text);
CREATE INDEX webhooks_open_headers_idx ON fairhook.webhooks USING btree (id) WHERE (headers <> '{}'::jsonb);
CREATE INDEX webhooks_ordered_idx ON fairhook.webhooks USING btree (id, ordering) WHERE (ordering <> 'none'::text);
CREATE INDEX webhooks_tenant_idx ON fairhook.webhooks USING btree (tenant, id);
CREATE TRIGGER webhooks_deleted AFTER DELETE ON fairhook.webhooks FOR EACH ROW EXECUTE FUNCTION fairhook.webhooks_deleted();
CREATE TRIGGER webhooks_gated AFTER UPDATE OF status, url ON fairhook.webhooks FOR EACH ROW WHEN (((old.status <> new.status) OR (old.url <> new.url))) EXECUTE FUNCTION fairhook.webhooks_gated();
CREATE TRIGGER webhooks_notify AFTER INSERT OR DELETE OR UPDATE ON fairhook.webhooks FOR EACH ROW EXECUTE FUNCTION fairhook.webhooks_notify();
CREATE TRIGGER webhooks_reordered AFTER UPDATE OF ordering ON fairhook.webhooks FOR EACH ROW WHEN ((old.ordering <> new.ordering)) EXECUTE FUNCTION fairhook.webhooks_reordered();
CREATE TRIGGER webhooks_seen_to AFTER UPDATE OF status, url ON fairhook.webhooks FOR EACH ROW WHEN (((old.status <> new.status) OR (old.url <> new.url))) EXECUTE FUNCTION fairhook.webhooks_seen_to();
CREATE TRIGGER webhooks_seen_to_deleted AFTER DELETE ON fairhook.webhooks FOR EACH ROW EXECUTE FUNCTION fairhook.webhooks_seen_to();
