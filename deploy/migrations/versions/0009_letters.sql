CREATE INDEX ledger_dead ON segmenter.ledger (shard, seq) WHERE kind = 'dead_letter'

CREATE INDEX ledger_dead_newest ON segmenter.ledger (recorded_at, shard, seq) WHERE kind = 'dead_letter'

-- Refused events, as the segmenter keeps them for whoever lists and replays them: a contract with a test.
CREATE VIEW audience.dead_letter AS
    SELECT shard, seq, user_id, payload->>'reason' AS reason, payload->>'source' AS source,
        coalesce((payload->>'replay')::boolean, false) AS replay, log_id, src, occurred_at AS received_at, recorded_at
    FROM segmenter.ledger WHERE kind = 'dead_letter'

-- A replay asked for. upto: each shard's last ledger number then, so that it replays nothing it made itself. shard, seq:
-- everything before was seen to. raw_end: where raw ended before the batch under way was sent; NULL while none is.
CREATE TABLE control.replay (
    replay_id text PRIMARY KEY,
    filters json NOT NULL,
    upto bigint[] NOT NULL,
    shard int NOT NULL DEFAULT 0,
    seq bigint NOT NULL DEFAULT 0,
    raw_end bigint,
    sent bigint NOT NULL DEFAULT 0,
    refused_still bigint NOT NULL DEFAULT 0,
    replayed_before bigint NOT NULL DEFAULT 0,
    gone bigint NOT NULL DEFAULT 0,
    worker text NOT NULL DEFAULT '',
    lease_until timestamptz NOT NULL DEFAULT now(),
    requested_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    cancelled boolean NOT NULL DEFAULT false
)

CREATE INDEX replay_open ON control.replay (requested_at) WHERE finished_at IS NULL

-- Which raw records were put into raw again; none is twice. sent: the broker has acknowledged it.
CREATE TABLE control.replayed (
    log_id text NOT NULL,
    shard int NOT NULL,
    src bigint NOT NULL,
    replay_id text NOT NULL,
    sent boolean NOT NULL DEFAULT false,
    PRIMARY KEY (log_id, shard, src)
)

CREATE INDEX replayed_unsent ON control.replayed (replay_id, shard) WHERE NOT sent
