-- How a webhook's requests are signed, and which kind of key each of its secrets is.
-- Locks: ACCESS EXCLUSIVE on webhooks and webhook_secrets for an instant; the
-- defaults are constants, so no row is rewritten.

ALTER TABLE fairhook.webhooks
    ADD COLUMN signatures         text[] NOT NULL DEFAULT '{standard}', -- webhook.Scheme
    ADD COLUMN signature_template jsonb;                                -- NULL: none

ALTER TABLE fairhook.webhook_secrets
    ADD COLUMN kind       text NOT NULL DEFAULT 'symmetric', -- webhook.SecretKind
    ADD COLUMN public_key bytea;                             -- of an ed25519 key, as it is; NULL for others

---- create above / drop below ----

-- What is left must make sense to the version before, which takes every secret for
-- a symmetric one.
DELETE FROM fairhook.webhook_secrets WHERE kind <> 'symmetric';
ALTER TABLE fairhook.webhook_secrets
    DROP COLUMN public_key,
    DROP COLUMN kind;
ALTER TABLE fairhook.webhooks
    DROP COLUMN signature_template,
    DROP COLUMN signatures;
