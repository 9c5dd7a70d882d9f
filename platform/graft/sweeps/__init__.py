"""Many experiments from one spec."""
