-- An alert is in force until another one refers to it (replaced_by), or it ends.
ALTER TABLE notifier.alert_chain ADD COLUMN replaced_by text NOT NULL DEFAULT ''

ALTER TABLE notifier.context_event
    ADD COLUMN city_ids int[] NOT NULL DEFAULT '{}',
    ADD COLUMN sent_at bigint NOT NULL DEFAULT 0,
    ADD COLUMN valid_until bigint NOT NULL DEFAULT 0

UPDATE notifier.context_event e SET city_ids = r.city_ids, sent_at = r.occurred_at, valid_until = r.valid_until
FROM notifier.run r WHERE r.context_id = e.context_id

-- chain: the name of the alert chain it was told under ('': of no alert). action: show, replace or retract. sound: whether
-- the phone may make itself heard. told: what its user then knew of the chain (services/notifier/domain/alert_chain.py).
ALTER TABLE notifier.message
    ADD COLUMN chain text NOT NULL DEFAULT '',
    ADD COLUMN action text NOT NULL DEFAULT 'show',
    ADD COLUMN sound boolean NOT NULL DEFAULT true,
    ADD COLUMN told text NOT NULL DEFAULT ''

UPDATE notifier.message m SET chain = m.occurrence FROM notifier.run r WHERE r.run_id = m.run_id AND r.context = 'alert'

CREATE INDEX message_chain ON notifier.message (shard, chain, user_id) WHERE chain <> ''

-- chain: as of the message, so that a restore can put it back.
ALTER TABLE notifier.outcome ADD COLUMN chain text NOT NULL DEFAULT ''
