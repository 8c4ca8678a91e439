-- What moved the counts on each day (days since 1970, UTC): users, roles, orders and revenue on the day they count from,
-- sessions and screens, and who was active after how long a pause (kind active; kind month, on the first of the month).
-- The sum over all days is segmenter.tally, where that has the kind.
CREATE TABLE segmenter.tally_day (
    kind text NOT NULL,
    name text NOT NULL,
    day int NOT NULL,
    shard int NOT NULL,
    users bigint NOT NULL,
    PRIMARY KEY (kind, name, day, shard)
) WITH (fillfactor = 50)
