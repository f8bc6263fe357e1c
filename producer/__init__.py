"""The producer: reads the inputs, records the run, publishes one task per pair."""
