"""What every stage stands on: configuration, errors, metrics, process lifecycle, Kafka in columns."""
