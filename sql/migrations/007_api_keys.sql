-- API keys, and the secrets with which a key's submissions must be signed where
-- it asks for that.
-- Locks: none that matter; the tables are new.

CREATE TABLE fairhook.api_keys (
    id                uuid        PRIMARY KEY,
    hash              bytea       NOT NULL UNIQUE, -- SHA-256 of the key's text, which is shown once and not kept
    hint              text        NOT NULL,        -- its first characters, for people to tell keys apart
    description       text        NOT NULL,
    tenant            text,                        -- NULL: all
    scopes            text[]      NOT NULL,        -- webhook.Scope
    allowed_cidrs     text[]      NOT NULL,        -- from where it may be used; empty: everywhere
    require_signature boolean     NOT NULL,        -- submissions must be signed (api_key_secrets)
    created_at        timestamptz NOT NULL DEFAULT now(),
    expires_at        timestamptz,
    revoked_at        timestamptz,
    last_used_at      timestamptz                  -- to the minute
);

CREATE INDEX api_keys_tenant_idx ON fairhook.api_keys (tenant, id);

-- Several may be valid at once while one is being rotated. sealed is bound to
-- the key's id.
CREATE TABLE fairhook.api_key_secrets (
    id         uuid        PRIMARY KEY,
    key_id     uuid        NOT NULL REFERENCES fairhook.api_keys ON DELETE CASCADE,
    sealed     bytea       NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz
);

CREATE INDEX api_key_secrets_key_idx ON fairhook.api_key_secrets (key_id, id);

-- Tells every process to forget a key: "key <hash in hex>". That it was used
-- (last_used_at) is not a change.
CREATE FUNCTION fairhook.api_keys_notify() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND to_jsonb(OLD) - 'last_used_at' = to_jsonb(NEW) - 'last_used_at' THEN
        RETURN NULL;
    END IF;
    PERFORM pg_notify('fairhook.catalog', 'key ' || encode(CASE TG_OP WHEN 'DELETE' THEN OLD.hash ELSE NEW.hash END, 'hex'));
    RETURN NULL;
END $$;

CREATE TRIGGER api_keys_notify AFTER INSERT OR UPDATE OR DELETE ON fairhook.api_keys
FOR EACH ROW EXECUTE FUNCTION fairhook.api_keys_notify();

CREATE FUNCTION fairhook.api_key_secrets_notify() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    PERFORM pg_notify('fairhook.catalog', 'key ' || encode(k.hash, 'hex'))
    FROM fairhook.api_keys k
    WHERE k.id = CASE TG_OP WHEN 'DELETE' THEN OLD.key_id ELSE NEW.key_id END;
    RETURN NULL;
END $$;

CREATE TRIGGER api_key_secrets_notify AFTER INSERT OR UPDATE OR DELETE ON fairhook.api_key_secrets
FOR EACH ROW EXECUTE FUNCTION fairhook.api_key_secrets_notify();

---- create above / drop below ----

DROP TABLE fairhook.api_key_secrets;
DROP TABLE fairhook.api_keys;
DROP FUNCTION fairhook.api_key_secrets_notify();
DROP FUNCTION fairhook.api_keys_notify();
