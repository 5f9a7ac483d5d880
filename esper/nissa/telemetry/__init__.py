"""What leaves a run while it trains: events, metrics of steps, health of layers; and the sinks they go to."""
