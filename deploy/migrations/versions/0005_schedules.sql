-- What holds for a city from starts_at until ends_at; no two of a city overlap.
CREATE TABLE notifier.forecast (
    city_id int NOT NULL,
    starts_at bigint NOT NULL,
    ends_at bigint NOT NULL,
    context_id text NOT NULL,
    log_id text NOT NULL,
    context_offset bigint NOT NULL,
    body json NOT NULL,
    received_at bigint NOT NULL,
    PRIMARY KEY (city_id, starts_at)
)

-- Up to which moment of product time the moments of a campaign's schedule were judged, and of which schedule.
CREATE TABLE notifier.schedule (
    campaign text PRIMARY KEY,
    trigger text NOT NULL,
    judged_until bigint NOT NULL
)

-- context: what its messages tell of: an alert (facts), the forecast for each city, or nothing (''). Runs other than
-- alerts' are expanded city by city. zone: whose clock set it going. valid_until is NULL where nothing ends.
ALTER TABLE notifier.run
    ADD COLUMN context text NOT NULL DEFAULT 'alert',
    ADD COLUMN zone text NOT NULL DEFAULT '',
    ALTER COLUMN valid_until DROP NOT NULL,
    DROP CONSTRAINT run_campaign_occurrence_context_id_key,
    ADD UNIQUE (campaign, occurrence, context_id, zone)

-- Where such a run found the message's user (0: it comes from none).
ALTER TABLE notifier.message ADD COLUMN city_id int NOT NULL DEFAULT 0

CREATE VIEW audience.cohort AS
    SELECT shard, split_part(name, ':', 1) AS relation, split_part(name, ':', 2)::int AS city_id, users
    FROM segmenter.tally WHERE kind = 'cohort'
