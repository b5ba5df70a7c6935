"""`kpi.values` to where people look: Redis for dashboards and subscribers, Prometheus, alerts."""
