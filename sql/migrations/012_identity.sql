-- What webhooks' requests say of who sends them: headers, credentials and certificates,
-- sealed. Until now headers were stored in the open, in webhooks.headers; a webhook's
-- move over one by one (a duty of the leading dispatcher), once no dispatcher is left
-- that cannot read sealed ones.
-- Locks: ACCESS EXCLUSIVE on instances, lane_gates and attempts for an instant; the
-- defaults are constants, so no row is rewritten, and lane_gates, which is small, is
-- read once. SHARE on webhooks while its index is built: it is read to its end once.

-- sealed is AES-256-GCM over a JSON document, bound to "credentials " and the webhook's
-- id. A webhook that has nothing to hide has no row.
CREATE TABLE fairhook.webhook_credentials (
    webhook_id            uuid        PRIMARY KEY REFERENCES fairhook.webhooks ON DELETE CASCADE,
    sealed                bytea       NOT NULL,
    certificate_not_after timestamptz,                      -- when the client certificate expires; NULL: there is none
    updated_at            timestamptz NOT NULL DEFAULT now() -- sealing the same, anew or at last, is no update
);
CREATE INDEX webhook_credentials_certificate_idx ON fairhook.webhook_credentials (certificate_not_after)
    WHERE certificate_not_after IS NOT NULL;

-- Whose headers are in the open still.
CREATE INDEX webhooks_open_headers_idx ON fairhook.webhooks (id) WHERE headers <> '{}';

-- Whether an instance can read sealed headers.
ALTER TABLE fairhook.instances ADD COLUMN reads_sealed_headers boolean NOT NULL DEFAULT false;

ALTER TABLE fairhook.attempts ADD COLUMN auth_us bigint;

ALTER TABLE fairhook.lane_gates
    DROP CONSTRAINT lane_gates_cause_check,
    ADD CONSTRAINT lane_gates_cause_check CHECK (cause IN ('receiver', 'breaker', 'proxy', 'auth'));

-- As for webhooks and their secrets, every process drops what it has cached; and what
-- closed the webhook's gate was about the credentials that it had.
CREATE FUNCTION fairhook.webhook_credentials_changed() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    changed uuid := CASE TG_OP WHEN 'DELETE' THEN OLD.webhook_id ELSE NEW.webhook_id END;
BEGIN
    PERFORM pg_notify('fairhook.catalog', w.id || ' ' || w.tenant) FROM fairhook.webhooks w WHERE w.id = changed;
    IF TG_OP = 'DELETE' OR NEW.updated_at >= now() AND NEW.updated_at IS DISTINCT FROM OLD.updated_at THEN
        DELETE FROM fairhook.lane_gates WHERE webhook_id = changed;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER webhook_credentials_changed AFTER INSERT OR UPDATE OR DELETE ON fairhook.webhook_credentials
    FOR EACH ROW EXECUTE FUNCTION fairhook.webhook_credentials_changed();

REVOKE ALL ON FUNCTION fairhook.webhook_credentials_changed() FROM PUBLIC;

---- create above / drop below ----

DROP TABLE fairhook.webhook_credentials;
DROP FUNCTION fairhook.webhook_credentials_changed();
DROP INDEX fairhook.webhooks_open_headers_idx;
ALTER TABLE fairhook.instances DROP COLUMN reads_sealed_headers;
ALTER TABLE fairhook.attempts DROP COLUMN auth_us;
DELETE FROM fairhook.lane_gates WHERE cause = 'auth';
ALTER TABLE fairhook.lane_gates
    DROP CONSTRAINT lane_gates_cause_check,
    ADD CONSTRAINT lane_gates_cause_check CHECK (cause IN ('receiver', 'breaker', 'proxy'));
