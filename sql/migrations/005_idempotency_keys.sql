-- Idempotency keys: which event a key of a tenant stands for, for 24 hours.
-- The row is claimed in the transaction that inserts the event, so that the two
-- exist together or not at all.
-- Locks: none that matter; the table is new.

CREATE TABLE fairhook.idempotency_keys (
    tenant      text        NOT NULL,
    key         text        NOT NULL,
    event_id    uuid        NOT NULL,
    fingerprint bytea       NOT NULL, -- SHA-256 of what was submitted
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, key)
);

CREATE INDEX idempotency_keys_created_idx ON fairhook.idempotency_keys (created_at);

---- create above / drop below ----

DROP TABLE fairhook.idempotency_keys;
