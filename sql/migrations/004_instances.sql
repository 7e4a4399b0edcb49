-- Who is running. A row is written every few seconds by each process; one that
-- stopped being written is how a dead process is noticed.
-- Locks: none that matter; the table is new.

CREATE TABLE fairhook.instances (
    id           text        PRIMARY KEY, -- fresh at each start; a dispatcher's is its River client id
    role         text        NOT NULL CHECK (role IN ('ingest', 'dispatcher')),
    version      text        NOT NULL,
    host         text        NOT NULL,
    started_at   timestamptz NOT NULL DEFAULT now(),
    heartbeat_at timestamptz NOT NULL DEFAULT now()
);

---- create above / drop below ----

DROP TABLE fairhook.instances;
