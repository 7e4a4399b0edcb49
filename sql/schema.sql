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

CREATE OR REPLACE FUNCTION fairhook.uuid_floor(moment timestamp with time zone)
 RETURNS uuid
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE STRICT
 SET search_path TO 'pg_catalog'
AS $function$
    SELECT (lpad(to_hex(floor(extract(epoch FROM moment) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$function$;

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
    CONSTRAINT attempts_pkey PRIMARY KEY (event_id, id)
) PARTITION BY RANGE (event_id);

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
    CONSTRAINT events_pkey PRIMARY KEY (id)
) PARTITION BY RANGE (id);

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
    CONSTRAINT instances_pkey PRIMARY KEY (id),
    CONSTRAINT instances_role_check CHECK ((role = ANY (ARRAY['ingest'::text, 'dispatcher'::text])))
);

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
CREATE INDEX river_job_kind ON fairhook.river_job USING btree (kind);
CREATE INDEX river_job_prioritized_fetching_index ON fairhook.river_job USING btree (state, queue, priority, scheduled_at, id);
CREATE INDEX river_job_state_and_finalized_at_index ON fairhook.river_job USING btree (state, finalized_at) WHERE (finalized_at IS NOT NULL);
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

CREATE TABLE fairhook.webhook_secrets (
    id uuid NOT NULL,
    webhook_id uuid NOT NULL,
    sealed bytea NOT NULL,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    expires_at timestamp with time zone,
    CONSTRAINT webhook_secrets_pkey PRIMARY KEY (id),
    CONSTRAINT webhook_secrets_webhook_id_fkey FOREIGN KEY (webhook_id) REFERENCES fairhook.webhooks(id) ON DELETE CASCADE
);
CREATE INDEX webhook_secrets_webhook_idx ON fairhook.webhook_secrets USING btree (webhook_id, id);
CREATE TRIGGER webhook_secrets_notify AFTER INSERT OR DELETE OR UPDATE ON fairhook.webhook_secrets FOR EACH ROW EXECUTE FUNCTION fairhook.webhook_secrets_notify();

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
    CONSTRAINT webhooks_pkey PRIMARY KEY (id),
    CONSTRAINT webhooks_status_check CHECK ((status = ANY (ARRAY['active'::text, 'paused'::text, 'disabled'::text])))
);
CREATE INDEX webhooks_gated_idx ON fairhook.webhooks USING btree (id) WHERE (status <> 'active'::text);
CREATE INDEX webhooks_tenant_idx ON fairhook.webhooks USING btree (tenant, id);
CREATE TRIGGER webhooks_notify AFTER INSERT OR DELETE OR UPDATE ON fairhook.webhooks FOR EACH ROW EXECUTE FUNCTION fairhook.webhooks_notify();
