-- What all dispatchers must know of a lane: its limits at delivery, the gate that
-- a receiver or the breaker closed, who owns it, and how its deliveries go. Also
-- what an instance says of itself, which webhooks are gone, and by which route signed
-- submissions came.
-- Locks: ACCESS EXCLUSIVE on webhooks, instances, attempts and river_job for an instant; the
-- defaults are constants, so no row is rewritten. SHARE ROW EXCLUSIVE on webhooks for the
-- triggers. No foreign keys: what is written per delivery must not lock webhooks.
-- SHARE on attempts while its indexes are built: they are small, but it is read to
-- its end, and attempts wait to be recorded meanwhile.

ALTER TABLE fairhook.webhooks
    ADD COLUMN rate_per_second double precision,                -- NULL: no limit
    ADD COLUMN burst           integer,                         -- NULL: as many as the rate allows in 0.2 s
    ADD COLUMN weight          smallint NOT NULL DEFAULT 1;     -- of its lane's turns

-- Why a lane may not be fetched now, other than its webhook's own status. One row
-- for a webhook that was gated and has not succeeded since; it stays after the gate
-- has opened, so that the next one can be longer.
CREATE TABLE fairhook.lane_gates (
    webhook_id  uuid        PRIMARY KEY,
    cause       text        NOT NULL CHECK (cause IN ('receiver', 'breaker', 'proxy')),
    until       timestamptz NOT NULL,               -- when it opens; the breaker's: when one delivery may probe
    in_a_row    integer     NOT NULL DEFAULT 1,     -- gates since the last success
    closed_at   timestamptz NOT NULL,               -- when the last of them began
    attempt_at  timestamptz NOT NULL,               -- when the attempt began that said so
    probe_by    text,                               -- the instance that may send the breaker's probe
    probe_until timestamptz                         -- and how long nobody else may
);

-- When gates closed and opened, and why: append-only, for people and for explain.
CREATE TABLE fairhook.lane_events (
    webhook_id uuid        NOT NULL,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    event      text        NOT NULL, -- closed, opened, probing
    cause      text        NOT NULL, -- receiver, breaker, proxy, paused, disabled
    until      timestamptz,          -- of a gate that opens by itself
    detail     text
);
CREATE INDEX lane_events_webhook_idx ON fairhook.lane_events (webhook_id, at);
CREATE INDEX lane_events_at_idx ON fairhook.lane_events (at);

-- Lanes that only one dispatcher may work at a time. The epoch grows with each new
-- owner.
CREATE TABLE fairhook.lane_owners (
    webhook_id uuid        PRIMARY KEY,
    owner      text        NOT NULL, -- an instance
    epoch      bigint      NOT NULL DEFAULT 1,
    until      timestamptz NOT NULL
);
CREATE INDEX lane_owners_owner_idx ON fairhook.lane_owners (owner);

-- How the deliveries of webhooks in trouble go, for ingest to see: counters that
-- only grow. Worth nothing after a crash.
CREATE UNLOGGED TABLE fairhook.lane_health (
    webhook_id uuid        PRIMARY KEY,
    delivered  bigint      NOT NULL,
    failed     bigint      NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);
CREATE INDEX lane_health_updated_idx ON fairhook.lane_health (updated_at);

-- Whose a webhook was that is gone: a submission to it that is repeated is answered
-- as it was the first time.
CREATE TABLE fairhook.deleted_webhooks (
    id         uuid        PRIMARY KEY,
    tenant     text        NOT NULL,
    deleted_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX deleted_webhooks_at_idx ON fairhook.deleted_webhooks (deleted_at);

-- By which route a signed submission came first, for as long as its webhook-id is
-- an idempotency key: the signature says nothing about that, so a recording could
-- be sent to another one.
CREATE TABLE fairhook.signed_requests (
    key_id      uuid        NOT NULL, -- the API key
    id          text        NOT NULL, -- the webhook-id
    fingerprint bytea       NOT NULL, -- of the route, with all in it that decides where the event goes
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (key_id, id)
);
CREATE INDEX signed_requests_created_idx ON fairhook.signed_requests (created_at);

ALTER TABLE fairhook.instances
    ADD COLUMN capacity  integer NOT NULL DEFAULT 0,        -- how much it can take at once now
    ADD COLUMN in_flight integer NOT NULL DEFAULT 0,        -- how much of that is in use
    ADD COLUMN draining  boolean NOT NULL DEFAULT false;    -- it was told to stop

-- Whether an attempt used a step of its delivery's retry schedule, for those who
-- must carry on where the dispatcher that made it died.
ALTER TABLE fairhook.attempts
    ADD COLUMN uses_step boolean NOT NULL DEFAULT true;

-- The days of events and attempts whose last event is older than retention, oldest
-- first, whether both tables of a day are there or one. The names say the day:
-- ensure_partitions gave them.
CREATE FUNCTION fairhook.expired_partitions(retention interval) RETURNS SETOF date
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog SET timezone = 'UTC' AS $$
    SELECT DISTINCT day FROM (
        SELECT CASE WHEN c.relname ~ '^(events|attempts)_[0-9]{8}$' THEN to_date(right(c.relname, 8), 'YYYYMMDD') END AS day
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent IN ('fairhook.events'::regclass, 'fairhook.attempts'::regclass)
    ) AS partition
    WHERE day + 1 <= (now() - retention)::timestamp
    ORDER BY day
$$;

-- Drops the oldest day of events and attempts that is past retention, and returns
-- it; NULL when there is none, or another session is at it. One day a call, so that
-- what was dropped stays so when the next day cannot be.
--
-- It takes ACCESS EXCLUSIVE on events and attempts for an instant, and everything
-- that comes after it waits with it: so it gives way soon (SQLSTATE 55P03), and is
-- called again later. It refuses (55006) while a delivery of the day is alive, and
-- a retention of less than a day. It runs as the owner of the schema, so that
-- services need no right to change it.
CREATE FUNCTION fairhook.drop_expired_partition(retention interval) RETURNS date
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' SET timezone = 'UTC' SET enable_seqscan = off AS $$
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
END $$;

REVOKE ALL ON FUNCTION fairhook.drop_expired_partition(interval) FROM PUBLIC;

CREATE FUNCTION fairhook.lane_gates_changed() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
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
        PERFORM pg_notify('fairhook.lanes', NEW.webhook_id::text);
    ELSE
        -- The breaker's gate opens with the success that deletes its row, any other when
        -- its time is over.
        INSERT INTO fairhook.lane_events (webhook_id, at, event, cause)
        VALUES (OLD.webhook_id, CASE OLD.cause WHEN 'breaker' THEN clock_timestamp() ELSE least(OLD.until, clock_timestamp()) END,
                'opened', OLD.cause);
        PERFORM pg_notify('fairhook.lanes', OLD.webhook_id::text);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER lane_gates_changed AFTER INSERT OR UPDATE OR DELETE ON fairhook.lane_gates
    FOR EACH ROW EXECUTE FUNCTION fairhook.lane_gates_changed();

CREATE FUNCTION fairhook.lane_owners_changed() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_notify('fairhook.lanes', OLD.webhook_id::text);
    RETURN NULL;
END $$;

-- Only a lane that is given up is news to others: they wait for it.
CREATE TRIGGER lane_owners_changed AFTER DELETE ON fairhook.lane_owners
    FOR EACH ROW EXECUTE FUNCTION fairhook.lane_owners_changed();

-- A webhook that is paused, disabled or active again, or has another URL. What closed
-- its gate was about the webhook as it was: somebody has just seen to it.
CREATE FUNCTION fairhook.webhooks_gated() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
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
END $$;

CREATE TRIGGER webhooks_gated AFTER UPDATE OF status, url ON fairhook.webhooks
    FOR EACH ROW WHEN (OLD.status <> NEW.status OR OLD.url <> NEW.url) EXECUTE FUNCTION fairhook.webhooks_gated();

CREATE FUNCTION fairhook.webhooks_deleted() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO fairhook.deleted_webhooks (id, tenant) VALUES (OLD.id, OLD.tenant) ON CONFLICT DO NOTHING;
    DELETE FROM fairhook.lane_gates WHERE webhook_id = OLD.id;
    DELETE FROM fairhook.lane_owners WHERE webhook_id = OLD.id;
    RETURN NULL;
END $$;

CREATE TRIGGER webhooks_deleted AFTER DELETE ON fairhook.webhooks
    FOR EACH ROW EXECUTE FUNCTION fairhook.webhooks_deleted();

-- Deliveries that ended without success, newest first: of all, of a tenant, of a
-- webhook. An id is the time of its row. Deliveries that succeeded, nearly all, are
-- in none of these and cost nothing. The columns after id only save looking at rows
-- that are not wanted.
CREATE INDEX attempts_ended_idx ON fairhook.attempts (status, id, reason)
    WHERE status IN ('exhausted', 'cancelled', 'dropped');
CREATE INDEX attempts_ended_tenant_idx ON fairhook.attempts (tenant, status, id, reason)
    WHERE status IN ('exhausted', 'cancelled', 'dropped');
CREATE INDEX attempts_ended_webhook_idx ON fairhook.attempts (webhook_id, status, id, reason)
    WHERE status IN ('exhausted', 'cancelled', 'dropped');

REVOKE ALL ON FUNCTION fairhook.lane_gates_changed(), fairhook.lane_owners_changed(),
    fairhook.webhooks_gated(), fairhook.webhooks_deleted() FROM PUBLIC;

-- All jobs are of one kind, so its index finds nothing. It costs two entries a
-- delivery, and misled the planner into reading all of them for each lane.
DROP INDEX fairhook.river_job_kind;

---- create above / drop below ----

CREATE INDEX river_job_kind ON fairhook.river_job USING btree (kind);

DROP INDEX fairhook.attempts_ended_webhook_idx;
DROP INDEX fairhook.attempts_ended_tenant_idx;
DROP INDEX fairhook.attempts_ended_idx;

DROP TRIGGER webhooks_deleted ON fairhook.webhooks;
DROP FUNCTION fairhook.webhooks_deleted();
DROP TRIGGER webhooks_gated ON fairhook.webhooks;
DROP FUNCTION fairhook.webhooks_gated();
DROP TABLE fairhook.signed_requests;
DROP TABLE fairhook.deleted_webhooks;
DROP TABLE fairhook.lane_health;
DROP TABLE fairhook.lane_owners;
DROP FUNCTION fairhook.lane_owners_changed();
DROP TABLE fairhook.lane_events;
DROP TABLE fairhook.lane_gates;
DROP FUNCTION fairhook.lane_gates_changed();
DROP FUNCTION fairhook.drop_expired_partition(interval);
DROP FUNCTION fairhook.expired_partitions(interval);
ALTER TABLE fairhook.attempts DROP COLUMN uses_step;
ALTER TABLE fairhook.instances
    DROP COLUMN draining,
    DROP COLUMN in_flight,
    DROP COLUMN capacity;
ALTER TABLE fairhook.webhooks
    DROP COLUMN weight,
    DROP COLUMN burst,
    DROP COLUMN rate_per_second;
