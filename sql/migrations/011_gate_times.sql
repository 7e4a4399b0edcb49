-- A gate that closes says until when in its notification, so that dispatchers need not
-- ask: '<webhook> <microseconds since 1970>'. One that opens, or a lane that has changed
-- otherwise, is named alone: there is more to know then.
-- Locks: none on tables.

CREATE OR REPLACE FUNCTION fairhook.lane_gates_changed() RETURNS trigger
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
END $$;

---- create above / drop below ----

CREATE OR REPLACE FUNCTION fairhook.lane_gates_changed() RETURNS trigger
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
