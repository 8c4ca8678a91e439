-- Whom a campaign that holds users out was for: one row per user and version, of the first time. What they did until `until`
-- is counted: opens are sessions begun; ended those of them that are known to have ended, screens the screens of these.
CREATE TABLE notifier.exposure (
    shard int NOT NULL,
    user_id text NOT NULL,
    campaign text NOT NULL,
    campaign_version int NOT NULL,
    variant text NOT NULL,
    exposed_at bigint NOT NULL,
    until bigint NOT NULL,
    opens int NOT NULL DEFAULT 0,
    ended int NOT NULL DEFAULT 0,
    screens int NOT NULL DEFAULT 0,
    PRIMARY KEY (shard, user_id, campaign, campaign_version)
) WITH (fillfactor = 80)
