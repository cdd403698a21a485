//! Writes tuned checkpoints from allocations
