//! Progress of stages that take long.

/// Receiver of progress. A stage calls [`Progress::start`] for each phase, then
/// [`Progress::advance`] as its units finish, from any thread.
pub trait Progress: Sync {
    /// A phase of `units` units begins.
    fn start(&self, phase: &str, units: u64);
    /// `units` more units are done.
    fn advance(&self, units: u64);
    /// Reports a message for people.
    fn note(&self, message: &str) {
        let _ = message;
    }
}

/// Ignores all progress.
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
}
