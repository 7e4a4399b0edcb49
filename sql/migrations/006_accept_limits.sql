-- What a webhook's owner may limit at acceptance, and the token buckets that
-- make rate limits true over all copies of ingest.
-- Locks: ACCESS EXCLUSIVE on webhooks for an instant; the defaults are constants,
-- so no row is rewritten.

ALTER TABLE fairhook.webhooks
    ADD COLUMN accept_per_second double precision,                  -- NULL: no limit
    ADD COLUMN max_backlog       integer NOT NULL DEFAULT 1000000,
    ADD COLUMN allowed_cidrs     text[]  NOT NULL DEFAULT '{}';     -- who may submit to it; empty: everyone

-- One row per thing that is limited. Copies of ingest take tokens out in leases
-- and hand them out themselves, so that no request waits for the database. It is
-- written often and worth nothing after a crash: an empty bucket is a full one.
CREATE UNLOGGED TABLE fairhook.rate_buckets (
    name       text             PRIMARY KEY, -- "webhook/<id>", "tenant/<key>" or "global"
    tokens     double precision NOT NULL,
    updated_at timestamptz      NOT NULL
) WITH (fillfactor = 50);

---- create above / drop below ----

DROP TABLE fairhook.rate_buckets;
ALTER TABLE fairhook.webhooks
    DROP COLUMN allowed_cidrs,
    DROP COLUMN max_backlog,
    DROP COLUMN accept_per_second;
