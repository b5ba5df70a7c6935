"""Change data capture, measured: a backlog into a large table, reading it, and freshness at Debezium's own limit."""
