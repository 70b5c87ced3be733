"""Operations: health checks, metrics, the dashboard, alerts, and the state of deployments."""
