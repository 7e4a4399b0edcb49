-- Webhooks and their sealed secrets, and the notification that lets every
-- process drop what it has cached of one.
-- Locks: none that matter; the tables are new.

CREATE TABLE fairhook.webhooks (
    id                     uuid        PRIMARY KEY,
    tenant                 text        NOT NULL,
    url                    text        NOT NULL,
    description            text        NOT NULL,
    event_types            text[]      NOT NULL,
    status                 text        NOT NULL CHECK (status IN ('active', 'paused', 'disabled')),
    disabled_reason        text,
    headers                jsonb       NOT NULL,
    timeout_seconds        integer     NOT NULL,
    max_in_flight          integer     NOT NULL,
    retry_schedule_seconds integer[]   NOT NULL,
    max_age_seconds        integer     NOT NULL,
    created_at             timestamptz NOT NULL DEFAULT now(),
    updated_at             timestamptz NOT NULL DEFAULT now()
);

-- Fan-out reads a tenant's webhooks; lists read them newest first.
CREATE INDEX webhooks_tenant_idx ON fairhook.webhooks (tenant, id);
-- The dispatchers' gate: who may not be fetched. Small by nature.
CREATE INDEX webhooks_gated_idx ON fairhook.webhooks (id) WHERE status <> 'active';

-- sealed is AES-256-GCM over the secret's text, bound to the webhook's id.
-- Several rows may be valid at once while a secret is being rotated.
CREATE TABLE fairhook.webhook_secrets (
    id         uuid        PRIMARY KEY,
    webhook_id uuid        NOT NULL REFERENCES fairhook.webhooks ON DELETE CASCADE,
    sealed     bytea       NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz
);

CREATE INDEX webhook_secrets_webhook_idx ON fairhook.webhook_secrets (webhook_id, id);

-- One notification per changed webhook, sent at commit: "<id> <tenant>". A
-- tenant key is at most 256 bytes, so the 8,000 byte limit is far away.
CREATE FUNCTION fairhook.webhooks_notify() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        PERFORM pg_notify('fairhook.catalog', OLD.id || ' ' || OLD.tenant);
    END IF;
    IF TG_OP <> 'DELETE' AND (TG_OP = 'INSERT' OR NEW.tenant <> OLD.tenant) THEN
        PERFORM pg_notify('fairhook.catalog', NEW.id || ' ' || NEW.tenant);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER webhooks_notify AFTER INSERT OR UPDATE OR DELETE ON fairhook.webhooks
FOR EACH ROW EXECUTE FUNCTION fairhook.webhooks_notify();

CREATE FUNCTION fairhook.webhook_secrets_notify() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    PERFORM pg_notify('fairhook.catalog', w.id || ' ' || w.tenant)
    FROM fairhook.webhooks w
    WHERE w.id = CASE TG_OP WHEN 'DELETE' THEN OLD.webhook_id ELSE NEW.webhook_id END;
    RETURN NULL;
END $$;

CREATE TRIGGER webhook_secrets_notify AFTER INSERT OR UPDATE OR DELETE ON fairhook.webhook_secrets
FOR EACH ROW EXECUTE FUNCTION fairhook.webhook_secrets_notify();

---- create above / drop below ----

DROP TABLE fairhook.webhook_secrets;
DROP TABLE fairhook.webhooks;
DROP FUNCTION fairhook.webhook_secrets_notify();
DROP FUNCTION fairhook.webhooks_notify();
