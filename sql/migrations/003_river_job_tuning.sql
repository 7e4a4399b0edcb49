-- Makes River's job table fit a delivery queue. Measured before choosing; the
-- figures are in docs/decisions.md.
-- Locks: ACCESS EXCLUSIVE on river_job for an instant (DROP INDEX, SET), SHARE
-- while the new index is built. On a new database the table is empty.

-- Fairhook looks into neither args nor metadata with SQL; these two GIN indexes
-- are about a third of the cost of an insert.
DROP INDEX fairhook.river_job_args_index;
DROP INDEX fairhook.river_job_metadata_index;

-- River's scheduler looks for due retries every few seconds: with a million
-- waiting ones this takes the look from half a second to a fraction of a
-- millisecond.
CREATE INDEX fairhook_river_job_due_idx ON fairhook.river_job (scheduled_at)
    WHERE state IN ('retryable', 'scheduled');

-- Every delivery leaves several dead rows behind, so a share of the table's size
-- is the wrong measure of when to vacuum, and pausing while doing it makes
-- every fetch slower.
ALTER TABLE fairhook.river_job SET (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 20000,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 50000
);

---- create above / drop below ----

ALTER TABLE fairhook.river_job RESET (
    autovacuum_vacuum_scale_factor,
    autovacuum_vacuum_threshold,
    autovacuum_vacuum_cost_delay,
    autovacuum_analyze_scale_factor,
    autovacuum_analyze_threshold
);
DROP INDEX fairhook.fairhook_river_job_due_idx;
CREATE INDEX river_job_args_index ON fairhook.river_job USING gin (args);
CREATE INDEX river_job_metadata_index ON fairhook.river_job USING gin (metadata);
