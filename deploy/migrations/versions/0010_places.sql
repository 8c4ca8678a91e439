-- Whoever lets no place be recorded any more is not sent what is held about one either.
DROP INDEX notifier.message_waiting

CREATE INDEX message_waiting ON notifier.message (shard, user_id) WHERE state IN ('held', 'waiting')
