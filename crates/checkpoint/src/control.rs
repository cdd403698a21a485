//! Progress and cancellation of long work.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::error::{CheckpointError, Result};

/// Called after each part of a tensor with the parts done and all parts, from any thread.
pub type Progress<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// Progress and cancellation of a decoding.
#[derive(Clone, Copy, Default)]
pub struct Control<'a> {
    /// Called after each part.
    pub progress: Option<Progress<'a>>,
    /// Once true, decoding ends with [`CheckpointError::Cancelled`] after the parts in progress.
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

    /// Call before each part.
    pub fn go_on(&self) -> Result<()> {
        match self.control.cancelled {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(CheckpointError::Cancelled),
            _ => Ok(()),
        }
    }

    /// Call after each part.
    pub fn done(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(progress) = self.control.progress {
            progress(done, self.all);
        }
    }
}
