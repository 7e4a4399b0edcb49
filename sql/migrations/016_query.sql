-- Lists of events and deliveries, the newest first: every page is read from one of
-- these from where it begins, whatever the size of the tables.
-- Locks: SHARE on events and on attempts while each index is built: nothing is accepted
-- and no attempt is recorded for that long (a few seconds for a million rows).

-- A tenant's events. An id is the time at which its event was accepted.
CREATE INDEX events_tenant_idx ON fairhook.events (tenant, id);

-- A webhook's attempts, by event: what was delivered to it, how its attempts went, and
-- those of one delivery, however many other webhooks the event went to.
CREATE INDEX attempts_webhook_idx ON fairhook.attempts (webhook_id, event_id);

-- Events with a delivery that ended without success: of all, of a tenant, of a webhook.
-- Those of 010 are in the order of the ends. Deliveries that succeeded, nearly all, are
-- in none of these.
CREATE INDEX attempts_ended_event_idx ON fairhook.attempts (status, event_id)
    WHERE status IN ('exhausted', 'cancelled', 'dropped');
CREATE INDEX attempts_ended_event_tenant_idx ON fairhook.attempts (tenant, status, event_id)
    WHERE status IN ('exhausted', 'cancelled', 'dropped');
CREATE INDEX attempts_ended_event_webhook_idx ON fairhook.attempts (webhook_id, status, event_id)
    WHERE status IN ('exhausted', 'cancelled', 'dropped');

---- create above / drop below ----

DROP INDEX fairhook.attempts_ended_event_webhook_idx;
DROP INDEX fairhook.attempts_ended_event_tenant_idx;
DROP INDEX fairhook.attempts_ended_event_idx;
DROP INDEX fairhook.attempts_webhook_idx;
DROP INDEX fairhook.events_tenant_idx;
