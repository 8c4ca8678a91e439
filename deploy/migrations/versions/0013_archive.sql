-- The moments a shard's users were brought to, in the order of their numbers: for whoever archives the log.
CREATE VIEW audience.tick AS
    SELECT shard, tick_id, seq, at_src, log_id, as_of, rules_version FROM segmenter.tick_log
