-- Events and attempts, append-only, in day partitions from the first row on.
-- There is no DEFAULT partition: it would block DETACH CONCURRENTLY, and a row
-- in it would stand in the way of the partition that it belongs to.
-- Locks: none that matter; the tables are new.

-- An id is a UUIDv7, so a day is a range of ids, a look-up by id reads one
-- partition, and the id alone can be the primary key. The time an event was
-- accepted is the time in its id.
CREATE TABLE fairhook.events (
    id           uuid   NOT NULL PRIMARY KEY,
    tenant       text   NOT NULL,
    type         text   NOT NULL,
    payload      bytea  NOT NULL,
    content_type text,            -- NULL: application/json
    occurred_at  timestamptz,
    metadata     jsonb,           -- NULL: none
    webhook_ids  uuid[] NOT NULL  -- the targets chosen at acceptance
) PARTITION BY RANGE (id);

-- One row per request made, and one (number 0) for a delivery that ended
-- without a request. Partitioned by the event's id, so that retention drops an
-- event and its attempts together. Times of phases are in microseconds.
CREATE TABLE fairhook.attempts (
    event_id        uuid        NOT NULL,
    id              uuid        NOT NULL,
    webhook_id      uuid        NOT NULL,
    tenant          text        NOT NULL,
    started_at      timestamptz NOT NULL,
    next_attempt_at timestamptz,
    queue_wait_us   bigint,
    dns_us          bigint,
    connect_us      bigint,
    tls_us          bigint,
    first_byte_us   bigint,
    total_us        bigint,
    number          integer     NOT NULL,
    status_code     smallint,
    reason          text        NOT NULL, -- how it ended: webhook.Reason
    status          text        NOT NULL, -- of the delivery after it: webhook.Status
    instance        text        NOT NULL,
    response        text,
    detail          text,
    PRIMARY KEY (event_id, id)
) PARTITION BY RANGE (event_id);

-- The smallest UUIDv7 of a moment.
CREATE FUNCTION fairhook.uuid_floor(moment timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog AS $$
    SELECT (lpad(to_hex(floor(extract(epoch FROM moment) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;

-- Makes sure that the day partitions from first_day to last_day (UTC, both
-- included) exist, and returns how many it made. Safe to call from several
-- processes at once. A partition is made standalone and then attached, which
-- takes no lock that stops reads or writes of its parent. It runs as the owner
-- of the schema, so that services need no right to change it.
CREATE FUNCTION fairhook.ensure_partitions(first_day date, last_day date) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' SET timezone = 'UTC' AS $$
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
END $$;

REVOKE ALL ON FUNCTION fairhook.ensure_partitions(date, date) FROM PUBLIC;

SELECT fairhook.ensure_partitions((now() AT TIME ZONE 'UTC')::date - 1, (now() AT TIME ZONE 'UTC')::date + 14);

---- create above / drop below ----

DROP TABLE fairhook.attempts;
DROP TABLE fairhook.events;
DROP FUNCTION fairhook.ensure_partitions(date, date);
DROP FUNCTION fairhook.uuid_floor(timestamptz);
