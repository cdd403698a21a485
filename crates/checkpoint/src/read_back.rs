//! What was written is read back before it counts as written: the original may be deleted next.

use std::path::Path;

use crate::error::{CheckpointError, Result};

/// Reads back, by `read`, what was just written for `to` and lies at `place` until it is found to be right.
pub(crate) fn read_back<T>(to: &Path, place: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    #[cfg(test)]
    tests::damage(place);
    let _ = place;
    read().map_err(|error| CheckpointError::ReadBack { path: to.into(), error: Box::new(error) })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;
    use std::path::Path;

    type Damage = Box<dyn Fn(&Path)>;

    thread_local! {
        static DAMAGE: RefCell<Option<Damage>> = const { RefCell::new(None) };
    }

    pub fn damage(place: &Path) {
        DAMAGE.with_borrow(|damage| damage.iter().for_each(|damage| damage(place)));
    }

    /// Lets `damage` change whatever `write` writes on this thread before it is read back.
    pub fn damaging<T>(damage: impl Fn(&Path) + 'static, write: impl FnOnce() -> T) -> T {
        DAMAGE.set(Some(Box::new(damage)));
        let result = write();
        DAMAGE.set(None);
        result
    }

    /// Flips a bit of a file, at a share of its length.
    pub fn flip(path: &Path, share: f64) {
        let mut bytes = std::fs::read(path).unwrap();
        let at = (bytes.len() as f64 * share) as usize;
        bytes[at] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }
}
