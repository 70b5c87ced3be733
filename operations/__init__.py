"""What operators look at: health, dashboard, alerts, deployments."""
