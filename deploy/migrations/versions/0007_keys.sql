-- A source may have several keys while one takes the other's place: the older one works until expires_at. scopes: what
-- an admin key allows. events_per_second: what a write key may post to each gateway process; NULL: as much as it likes.
ALTER TABLE control.key
    DROP CONSTRAINT key_source_key,
    ADD COLUMN scopes text[] NOT NULL DEFAULT '{}',
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN events_per_second int CHECK (events_per_second > 0)

UPDATE control.key SET scopes = '{read,write,privacy}' WHERE kind = 'admin'

CREATE VIEW control.key_in_force AS
    SELECT sha256, kind, source, scopes, events_per_second, created_at FROM control.key
    WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())

CREATE INDEX key_source ON control.key (source)

-- What a write key was used for, roughly: gateways add to it every few seconds, and one that dies loses that much.
CREATE TABLE control.key_use (
    sha256 text PRIMARY KEY REFERENCES control.key ON DELETE CASCADE,
    events bigint NOT NULL,
    refused bigint NOT NULL,
    last_used_at timestamptz NOT NULL
)

-- What ingest decided of each source's events, by minute since 1970, roughly; kept for a day.
CREATE TABLE control.source_verdict (
    source text NOT NULL,
    minute int NOT NULL,
    accepted bigint NOT NULL,
    rejected bigint NOT NULL,
    PRIMARY KEY (source, minute)
)
