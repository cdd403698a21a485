//! Following and stopping what takes long.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::error::{CheckpointError, Result};

/// Told after each part of a tensor: parts done, and parts in all. Comes from any thread.
pub type Progress<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// How a decoding is followed and stopped.
#[derive(Clone, Copy, Default)]
pub struct Control<'a> {
    /// Where progress is told.
    pub progress: Option<Progress<'a>>,
    /// Once set, decoding ends with [`CheckpointError::Cancelled`] after the parts that are under way.
    pub cancelled: Option<&'a AtomicBool>,
}

/// Parts of one tensor that are done.
pub(crate) struct Parts<'a> {
    control: Control<'a>,
    done: AtomicUsize,
    all: usize,
}

impl<'a> Parts<'a> {
    pub fn new(control: Control<'a>, all: usize) -> Self {
        Self { control, done: AtomicUsize::new(0), all }
    }

    /// To be called before each part.
    pub fn go_on(&self) -> Result<()> {
        match self.control.cancelled {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(CheckpointError::Cancelled),
            _ => Ok(()),
        }
    }

    /// To be called after each part.
    pub fn done(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(progress) = self.control.progress {
            progress(done, self.all);
        }
    }
}
