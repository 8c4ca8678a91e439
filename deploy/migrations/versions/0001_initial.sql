CREATE SCHEMA control

CREATE SCHEMA spine

CREATE SCHEMA segmenter

CREATE SCHEMA notifier

CREATE SCHEMA audience

-- One row: what this installation was created with. shards never changes.
CREATE TABLE control.installation (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    shards int NOT NULL,
    log_id text NOT NULL,
    salt text NOT NULL,
    sending boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now()
)

-- Immutable rules versions; a rollback is a new version with old content.
CREATE TABLE control.rules (
    version int PRIMARY KEY,
    pack text NOT NULL,
    body json NOT NULL,
    note text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now()
)

CREATE TABLE control.key (
    sha256 text PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('write', 'admin')),
    source text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
)

-- Asks the owner of a shard to emit again all that follows `after` in the named topic.
CREATE TABLE control.repair (
    topic text NOT NULL,
    shard int NOT NULL,
    after bigint NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT now(),
    done_at timestamptz,
    PRIMARY KEY (topic, shard)
)

-- relayed: every row up to it is acknowledged by the broker. last_change_seq and last_dead_seq: the
-- newest rows that went to the public topics, so that a row can name the one before it.
CREATE TABLE spine.shard_owner (
    service text NOT NULL,
    shard int NOT NULL,
    epoch bigint NOT NULL DEFAULT 0,
    owner text NOT NULL DEFAULT '',
    gen int NOT NULL DEFAULT 1,
    next_seq bigint NOT NULL DEFAULT 1,
    relayed bigint NOT NULL DEFAULT 0,
    last_change_seq bigint NOT NULL DEFAULT 0,
    last_dead_seq bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (service, shard)
) WITH (fillfactor = 50)

-- next_offset resumes; last_offset and digest prove that the log is still the same one.
-- last_src: the last number applied from this source (src of a decision, or seq under last_gen).
CREATE TABLE spine.shard_position (
    service text NOT NULL,
    shard int NOT NULL,
    source text NOT NULL,
    log_id text NOT NULL,
    next_offset bigint NOT NULL DEFAULT 0,
    last_offset bigint NOT NULL DEFAULT -1,
    digest bytea NOT NULL DEFAULT '',
    last_gen int NOT NULL DEFAULT 0,
    last_src bigint NOT NULL DEFAULT -1,
    PRIMARY KEY (service, shard, source)
) WITH (fillfactor = 50)

-- due_bucket: an hourly lower bound (hours since 1970) of the instant inside hot, or NULL if nothing
-- will ever change by itself. cold: devices, locale, zone, version.
CREATE TABLE segmenter.user_state (
    shard int NOT NULL,
    user_id text NOT NULL,
    due_bucket int,
    rules_version int NOT NULL,
    hot bytea NOT NULL,
    cold bytea,
    PRIMARY KEY (shard, user_id)
) WITH (fillfactor = 78, autovacuum_vacuum_scale_factor = 0.02)

CREATE INDEX user_state_due ON segmenter.user_state (shard, due_bucket) WHERE due_bucket IS NOT NULL

-- Message ids younger than a day that left the ring in the user's state.
CREATE TABLE segmenter.dedup_spill (
    shard int NOT NULL,
    user_id text NOT NULL,
    day int NOT NULL,
    hash bigint NOT NULL,
    PRIMARY KEY (shard, user_id, day, hash)
)

-- entered_seq: the ledger row that put the user there.
CREATE TABLE segmenter.cohort_member (
    shard int NOT NULL,
    city_id int NOT NULL,
    relation text NOT NULL,
    user_id text NOT NULL,
    entered_seq bigint NOT NULL,
    PRIMARY KEY (shard, city_id, relation, user_id)
)

CREATE TABLE segmenter.tally (
    shard int NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    users bigint NOT NULL,
    PRIMARY KEY (shard, kind, name)
) WITH (fillfactor = 50)

-- watermark: everything received before it has been applied. last_tick: the greatest tick recorded.
-- rules_cursor: where the walk that brings everyone to rules_version stands (NULL: done).
CREATE TABLE segmenter.shard_time (
    shard int PRIMARY KEY,
    watermark bigint NOT NULL DEFAULT 0,
    last_tick bigint NOT NULL DEFAULT 0,
    rules_version int NOT NULL DEFAULT 0,
    rules_cursor text
) WITH (fillfactor = 50)

-- A tick lies behind the event at_src: time reached as_of, or the rules became rules_version.
CREATE TABLE segmenter.tick_log (
    shard int NOT NULL,
    tick_id bigint GENERATED ALWAYS AS IDENTITY,
    seq bigint NOT NULL,
    at_src bigint NOT NULL,
    log_id text NOT NULL,
    as_of bigint NOT NULL,
    rules_version int NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard, tick_id)
)

CREATE TABLE segmenter.ledger (
    shard int NOT NULL,
    gen int NOT NULL,
    seq bigint NOT NULL,
    prev_seq bigint NOT NULL,
    user_id text NOT NULL,
    kind text NOT NULL,
    payload json NOT NULL,
    cause_type text NOT NULL,
    cause_id text NOT NULL,
    log_id text NOT NULL,
    src bigint NOT NULL,
    occurred_at bigint NOT NULL,
    recorded_at bigint NOT NULL,
    rules_version int NOT NULL,
    PRIMARY KEY (shard, seq, recorded_at)
) PARTITION BY RANGE (recorded_at)

CREATE INDEX ledger_user ON segmenter.ledger (shard, user_id, seq)

-- Rows the feed needs for a week and history does not.
CREATE TABLE segmenter.outbox (LIKE segmenter.ledger INCLUDING DEFAULTS, PRIMARY KEY (shard, seq, recorded_at))
    PARTITION BY RANGE (recorded_at)

-- The notifier's own row per user, folded from the feed.
CREATE TABLE notifier.recipient (
    shard int NOT NULL,
    user_id text NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (shard, user_id)
) WITH (fillfactor = 78)

-- Which chain an alert belongs to: every alert seen, and every one it refers to.
CREATE TABLE notifier.alert_chain (
    alert_id text PRIMARY KEY,
    chain_id text NOT NULL,
    sent_at bigint NOT NULL
)

CREATE INDEX alert_chain_chain ON notifier.alert_chain (chain_id)

CREATE TABLE notifier.context_event (
    context_id text PRIMARY KEY,
    kind text NOT NULL,
    chain_id text NOT NULL,
    log_id text NOT NULL,
    context_offset bigint NOT NULL,
    verdict text NOT NULL,
    cities int NOT NULL,
    body json NOT NULL,
    received_at bigint NOT NULL
)

-- One campaign set going for an audience; expanded shard by shard, page by page.
CREATE TABLE notifier.run (
    run_id text PRIMARY KEY,
    campaign text NOT NULL,
    campaign_version int NOT NULL,
    occurrence text NOT NULL,
    context_id text NOT NULL,
    log_id text NOT NULL,
    context_offset bigint NOT NULL,
    city_ids int[] NOT NULL,
    relations text[] NOT NULL,
    facts json NOT NULL,
    occurred_at bigint NOT NULL,
    began_at bigint NOT NULL,
    valid_until bigint NOT NULL,
    created_at bigint NOT NULL,
    UNIQUE (campaign, occurrence, context_id)
)

CREATE TABLE notifier.run_shard (
    run_id text NOT NULL REFERENCES notifier.run,
    shard int NOT NULL,
    cursor text NOT NULL DEFAULT '',
    done boolean NOT NULL DEFAULT false,
    planned bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (run_id, shard)
) WITH (fillfactor = 50)

CREATE INDEX run_shard_open ON notifier.run_shard (shard) WHERE NOT done

-- Ledger before wire. state: intent, attempted, then one of sent, failed, unknown; or at once
-- suppressed or held_out. cause_seq: the segmenter's ledger row; run_id: the run, if it came from one.
CREATE TABLE notifier.message (
    month text NOT NULL,
    message_id text NOT NULL,
    shard int NOT NULL,
    user_id text NOT NULL,
    campaign text NOT NULL,
    campaign_version int NOT NULL,
    variant text NOT NULL,
    occurrence text NOT NULL,
    state text NOT NULL,
    reason text NOT NULL DEFAULT '',
    provider text NOT NULL DEFAULT '',
    provider_ref text NOT NULL DEFAULT '',
    device_id text NOT NULL DEFAULT '',
    token text NOT NULL DEFAULT '',
    title text NOT NULL DEFAULT '',
    body text NOT NULL DEFAULT '',
    collapse_id text NOT NULL DEFAULT '',
    expires_at bigint NOT NULL DEFAULT 0,
    on_unknown text NOT NULL DEFAULT 'give_up',
    attempts int NOT NULL DEFAULT 0,
    cause_gen int NOT NULL DEFAULT 0,
    cause_seq bigint NOT NULL DEFAULT 0,
    cause_src bigint NOT NULL DEFAULT -1,
    run_id text NOT NULL DEFAULT '',
    planned_at bigint NOT NULL,
    attempted_at bigint,
    finished_at bigint,
    opened_at bigint,
    PRIMARY KEY (month, message_id)
) PARTITION BY LIST (month)

CREATE INDEX message_open ON notifier.message (shard) WHERE state IN ('intent', 'attempted')

CREATE INDEX message_user ON notifier.message (shard, user_id)

-- The notifier's ledger as outbox: one row per outcome, relayed to push.outcomes.v1.
CREATE TABLE notifier.outcome (
    shard int NOT NULL,
    gen int NOT NULL,
    seq bigint NOT NULL,
    user_id text NOT NULL,
    message_id text NOT NULL,
    campaign text NOT NULL,
    variant text NOT NULL,
    outcome text NOT NULL,
    reason text NOT NULL,
    provider text NOT NULL,
    occurred_at bigint NOT NULL,
    recorded_at bigint NOT NULL,
    PRIMARY KEY (shard, seq, recorded_at)
) PARTITION BY RANGE (recorded_at)

-- What the notifier may read of the segmenter: a contract with a test.
CREATE VIEW audience.cohort_member AS
    SELECT shard, city_id, relation, user_id, entered_seq FROM segmenter.cohort_member

CREATE VIEW audience.position AS
    SELECT shard, gen, next_seq - 1 AS last_seq FROM spine.shard_owner WHERE service = 'segmenter'

