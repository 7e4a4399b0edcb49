-- Event types that the operator has declared, with the JSON Schema that payloads
-- of the type must satisfy.
-- Locks: none that matter; the table is new.

CREATE TABLE fairhook.event_types (
    name        text        PRIMARY KEY,
    description text        NOT NULL,
    schema      text,                  -- JSON Schema (draft 2020-12), as it was given; NULL: any payload
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now()
);

-- Tells every process to forget a type: "type <name>".
CREATE FUNCTION fairhook.event_types_notify() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    PERFORM pg_notify('fairhook.catalog', 'type ' || CASE TG_OP WHEN 'DELETE' THEN OLD.name ELSE NEW.name END);
    RETURN NULL;
END $$;

CREATE TRIGGER event_types_notify AFTER INSERT OR UPDATE OR DELETE ON fairhook.event_types
FOR EACH ROW EXECUTE FUNCTION fairhook.event_types_notify();

---- create above / drop below ----

DROP TABLE fairhook.event_types;
DROP FUNCTION fairhook.event_types_notify();
