//! Memory that runs side by side share.

use std::sync::{Condvar, Mutex};

/// Memory that is free for runs.
pub(super) struct Budget {
    left: Mutex<u64>,
    freed: Condvar,
    whole: u64,
}

impl Budget {
    pub fn new(bytes: u64) -> Self {
        Self { left: Mutex::new(bytes), freed: Condvar::new(), whole: bytes }
    }

    /// Runs `work` once `bytes` are free; what needs more than the whole budget runs alone.
    pub fn within<T>(&self, bytes: u64, work: impl FnOnce() -> T) -> T {
        let bytes = bytes.min(self.whole);
        let mut left = self.left.lock().expect("no panic while held");
        while *left < bytes {
            left = self.freed.wait(left).expect("no panic while held");
        }
        *left -= bytes;
        drop(left);
        let result = work();
        *self.left.lock().expect("no panic while held") += bytes;
        self.freed.notify_all();
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn the_budget_lets_no_more_in_than_fits() {
        let budget = Budget::new(10);
        let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    budget.within(4, || {
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::sleep(std::time::Duration::from_millis(5));
                        inside.fetch_sub(1, Ordering::SeqCst);
                    })
                });
            }
        });
        assert!(most.into_inner() <= 2);
        budget.within(1000, || {});
    }
}
