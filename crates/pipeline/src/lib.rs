//! Configuration, stage graph and progress
