-- A page of a run: its shard's users behind `after` up to the next page's. It was read at the ledger number `seq` and
-- when context events up to context_offset were judged, and planned when the feed was applied up to heard_seq.
CREATE TABLE notifier.run_page (
    run_id text NOT NULL REFERENCES notifier.run,
    shard int NOT NULL,
    after text NOT NULL,
    seq bigint NOT NULL,
    context_offset bigint NOT NULL,
    heard_seq bigint NOT NULL,
    planned_at bigint NOT NULL,
    PRIMARY KEY (run_id, shard, after)
)
