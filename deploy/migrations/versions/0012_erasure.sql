-- Whom nothing is taken in of: salted hashes of the ids of erased users.
CREATE TABLE segmenter.suppressed (
    shard int NOT NULL,
    hash bytea NOT NULL,
    PRIMARY KEY (shard, hash)
)

-- A request to erase or to readmit a user, and how far it has come. user_id: empty before the segmenter has carried it out,
-- and once all is done. gen, seq: the ledger row of user_erased. notifier_seq: the notifier's last row when it erased.
CREATE TABLE control.erasure (
    erasure_id text PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('erase', 'readmit')),
    shard int NOT NULL,
    user_id text NOT NULL DEFAULT '',
    gen int NOT NULL DEFAULT 0,
    seq bigint NOT NULL DEFAULT 0,
    requested_at timestamptz NOT NULL DEFAULT now(),
    segmenter_at timestamptz,
    notifier_at timestamptz,
    notifier_seq bigint,
    done_at timestamptz
)

CREATE INDEX erasure_open ON control.erasure (shard, seq) WHERE done_at IS NULL

CREATE INDEX outcome_user ON notifier.outcome (shard, user_id)

-- Of erased users no letter is shown or replayed.
CREATE OR REPLACE VIEW audience.dead_letter AS
    SELECT shard, seq, user_id, payload->>'reason' AS reason, payload->>'source' AS source,
        coalesce((payload->>'replay')::boolean, false) AS replay, log_id, src, occurred_at AS received_at, recorded_at
    FROM segmenter.ledger WHERE kind = 'dead_letter' AND src >= 0
