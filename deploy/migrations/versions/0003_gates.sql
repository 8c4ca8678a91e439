-- What caps, gaps, repeats and quiet hours are judged by. counts: it uses up caps once it is an intent (safety messages
-- never do). content_key: what must not be repeated. zone: where its user's clock stood, if quiet hours bind it. held: the
-- occurrence of a message that waits for release_at (state held), to be judged again. explain: every gate, with its values.
ALTER TABLE notifier.message
    ADD COLUMN category text NOT NULL DEFAULT '',
    ADD COLUMN counts boolean NOT NULL DEFAULT false,
    ADD COLUMN content_key text NOT NULL DEFAULT '',
    ADD COLUMN zone text NOT NULL DEFAULT '',
    ADD COLUMN release_at bigint NOT NULL DEFAULT 0,
    ADD COLUMN held text NOT NULL DEFAULT '',
    ADD COLUMN explain text NOT NULL DEFAULT ''

CREATE INDEX message_held ON notifier.message (shard, release_at) WHERE state = 'held'

CREATE INDEX message_counted ON notifier.message (shard, user_id) WHERE counts
