-- Operational events: what Fairhook tells its operators about webhooks in trouble, by
-- delivering it to webhooks of theirs. And what there is to tell: for how long nothing
-- but failure has come of a webhook, which deliveries were exhausted, whose backlog
-- grew. Also tests of webhooks, which ingest asks for and dispatchers make.
-- Locks: ACCESS EXCLUSIVE on webhooks for an instant, without a rewrite. SHARE ROW
-- EXCLUSIVE on webhooks, on submit_grants, which is read, and on events and its
-- partitions for an instant, for the triggers.

-- Whoever uses the name already must not find the operators' events in it: the
-- migration stops here, and the release before it goes on working.
DO $$
BEGIN
    IF EXISTS (SELECT FROM fairhook.webhooks WHERE tenant = 'fairhook.operator')
       OR EXISTS (SELECT FROM fairhook.api_keys WHERE tenant = 'fairhook.operator')
       OR EXISTS (SELECT FROM fairhook.submit_grants WHERE tenant = 'fairhook.operator') THEN
        RAISE EXCEPTION 'the tenant fairhook.operator is reserved from now on, and there are webhooks, API keys or grants of it'
            USING HINT = 'Delete them, or move them to another tenant, and migrate again.';
    END IF;
END $$;

ALTER TABLE fairhook.submit_grants
    ADD CONSTRAINT submit_grants_no_operator CHECK (tenant <> 'fairhook.operator');

ALTER TABLE fairhook.webhooks
    ADD COLUMN auto_disable_after_seconds integer; -- of nothing but failure; NULL: as the dispatchers are set; 0: never

-- Nobody submits events for the operators: they are Fairhook's own, and who writes
-- them says so to this trigger. It keeps people from mistakes, in every way in; who may
-- submit for all tenants is trusted not to pretend. For all other tenants it is one
-- comparison.
CREATE FUNCTION fairhook.events_reserved() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('fairhook.announcing', true) IS DISTINCT FROM 'on' THEN
        RAISE EXCEPTION USING ERRCODE = 'FH403',
            MESSAGE = 'The tenant fairhook.operator is for Fairhook''s own events: nobody submits for it.';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER events_reserved BEFORE INSERT ON fairhook.events
    FOR EACH ROW WHEN (NEW.tenant = 'fairhook.operator') EXECUTE FUNCTION fairhook.events_reserved();

-- A clock that stands still while no dispatcher runs: what was not tried did not
-- fail. The leader winds it; between two ticks it goes on by itself, for five minutes
-- at most. One row at most; none: no leader has been at work yet.
CREATE TABLE fairhook.dispatch_clock (
    singleton boolean     PRIMARY KEY DEFAULT true CHECK (singleton),
    worked    interval    NOT NULL DEFAULT '0', -- until ticked_at
    ticked_at timestamptz NOT NULL
);

-- How webhooks fail: one row for a webhook that failed lately.
CREATE TABLE fairhook.webhook_failures (
    webhook_id    uuid        PRIMARY KEY,
    since         timestamptz,                      -- the first failed attempt since it last worked; NULL: it works
    cleared_at    timestamptz,                      -- what failed before this does not count: a success, or somebody saw to it
    failed_at     timestamptz NOT NULL,             -- the latest failed attempt that was noted
    failed_worked interval    NOT NULL,             -- by the dispatchers' clock
    failing_for   interval    NOT NULL,             -- from since to failed_at, by that clock, without long silences
    attempts      bigint      NOT NULL,             -- that failed since
    reason        text        NOT NULL,             -- of the latest: webhook.Reason
    status_code   smallint,
    announced     smallint    NOT NULL DEFAULT -1,  -- the highest percent that was announced; 0: early; -1: nothing
    told          boolean     NOT NULL DEFAULT false -- it was announced that it fails, and not yet that it recovered
) WITH (fillfactor = 50);

-- Exhausted deliveries that were not announced yet, and webhooks of which some were
-- lately. Written with the attempts, while an operator wants to hear of it.
CREATE TABLE fairhook.exhausted_deliveries (
    webhook_id  uuid        PRIMARY KEY,
    deliveries  bigint      NOT NULL,
    event_ids   uuid[]      NOT NULL,               -- some of them
    first_at    timestamptz,
    last_at     timestamptz,
    announce_at timestamptz NOT NULL DEFAULT now()  -- not before
) WITH (fillfactor = 50);
CREATE INDEX exhausted_deliveries_announce_idx ON fairhook.exhausted_deliveries (announce_at);

-- Webhooks whose backlog was announced, until it has shrunk.
CREATE TABLE fairhook.growing_backlogs (
    webhook_id   uuid        PRIMARY KEY,
    announced_at timestamptz NOT NULL DEFAULT now(),
    checked_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX growing_backlogs_checked_idx ON fairhook.growing_backlogs (checked_at);

-- Tests of webhooks, lately. The first dispatcher that claims one makes it.
CREATE TABLE fairhook.webhook_tests (
    id            uuid        PRIMARY KEY,
    webhook_id    uuid        NOT NULL,
    requested_at  timestamptz NOT NULL DEFAULT now(),
    claimed_at    timestamptz,
    instance      text,     -- that claimed it
    finished_at   timestamptz,
    reason        text,     -- how it ended: webhook.Reason
    status_code   smallint,
    auth_us       bigint,
    dns_us        bigint,
    connect_us    bigint,
    tls_us        bigint,
    first_byte_us bigint,
    total_us      bigint,
    response      text,
    detail        text
);
CREATE INDEX webhook_tests_webhook_idx ON fairhook.webhook_tests (webhook_id, requested_at);
CREATE INDEX webhook_tests_waiting_idx ON fairhook.webhook_tests (requested_at) WHERE claimed_at IS NULL;

-- A webhook that begins to fail is news to all dispatchers: each has to say from now
-- on if it works after all.
CREATE FUNCTION fairhook.webhook_failures_began() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_notify('fairhook.lanes', NEW.webhook_id::text);
    RETURN NULL;
END $$;

CREATE TRIGGER webhook_failures_began AFTER INSERT ON fairhook.webhook_failures
    FOR EACH ROW EXECUTE FUNCTION fairhook.webhook_failures_began();

-- A webhook that is active again, or has another URL, starts afresh: somebody has just
-- seen to it. The name has it come after webhooks_gated, so that rows are locked in the
-- order in which attempts are recorded.
CREATE FUNCTION fairhook.webhooks_seen_to() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
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
END $$;

CREATE TRIGGER webhooks_seen_to AFTER UPDATE OF status, url ON fairhook.webhooks
    FOR EACH ROW WHEN (OLD.status <> NEW.status OR OLD.url <> NEW.url) EXECUTE FUNCTION fairhook.webhooks_seen_to();
CREATE TRIGGER webhooks_seen_to_deleted AFTER DELETE ON fairhook.webhooks
    FOR EACH ROW EXECUTE FUNCTION fairhook.webhooks_seen_to();

REVOKE ALL ON FUNCTION fairhook.events_reserved(), fairhook.webhook_failures_began(), fairhook.webhooks_seen_to() FROM PUBLIC;

---- create above / drop below ----

-- They would stop this migration when it is applied again, and nothing is delivered to
-- them meanwhile. The rest of them goes with their rows.
DELETE FROM fairhook.webhooks WHERE tenant = 'fairhook.operator';

DROP TRIGGER webhooks_seen_to_deleted ON fairhook.webhooks;
DROP TRIGGER webhooks_seen_to ON fairhook.webhooks;
DROP FUNCTION fairhook.webhooks_seen_to();
DROP TABLE fairhook.webhook_tests;
DROP TABLE fairhook.growing_backlogs;
DROP TABLE fairhook.exhausted_deliveries;
DROP TABLE fairhook.webhook_failures;
DROP FUNCTION fairhook.webhook_failures_began();
DROP TABLE fairhook.dispatch_clock;
DROP TRIGGER events_reserved ON fairhook.events;
DROP FUNCTION fairhook.events_reserved();
ALTER TABLE fairhook.webhooks DROP COLUMN auto_disable_after_seconds;
ALTER TABLE fairhook.submit_grants DROP CONSTRAINT submit_grants_no_operator;
