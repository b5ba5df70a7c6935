"""Ways in: Debezium connectors over Kafka Connect, the MQTT bridge, HTTP ingest."""
