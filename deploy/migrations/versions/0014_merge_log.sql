-- What a shard read of user.merge.v1, in order, for a refold: `told_gen`, `told_seq` of shard `teller`, applied behind the
-- event at_src and the tick to last_tick, at the moment as_of, under rules_version. Kept as long as raw is.
CREATE TABLE segmenter.merge_log (
    shard int NOT NULL,
    merge_id bigint GENERATED ALWAYS AS IDENTITY,
    teller int NOT NULL,
    told_gen int NOT NULL,
    told_seq bigint NOT NULL,
    at_src bigint NOT NULL,
    log_id text NOT NULL,
    as_of bigint NOT NULL,
    last_tick bigint NOT NULL,
    rules_version int NOT NULL,
    recorded_at bigint NOT NULL,
    PRIMARY KEY (shard, merge_id)
)
