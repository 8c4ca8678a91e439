-- A message may also be waiting: its occurrence (held) sets its campaign going when release_at has passed in the shard's
-- own time, unless something calls it off before.
CREATE INDEX message_due ON notifier.message (shard, state, release_at) WHERE state IN ('held', 'waiting')

CREATE INDEX message_waiting ON notifier.message (shard, user_id) WHERE state = 'waiting'

DROP INDEX notifier.message_held
